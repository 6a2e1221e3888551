// The hooks of a training: module calls and the gradients of their outputs. They are compiled since
// between two operators of a training all code is cold, and a few hundred lines of Python cost more
// than the reading: 1.29 instead of 1.24 times the step of an MLP of 50 layers.
//
// The names are those of the Python twins in `hook_classes`, which decide wherever something is unusual.

#include "_scan.h"

#include <chrono>
#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace reading {
namespace {

double now() {
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(since).count();
}

template <typename T>
int traverse(PyObject *self, visitproc visit, void *arg) {
    for (PyObject *held : reinterpret_cast<T *>(self)->held) Py_VISIT(held);
    return 0;
}

template <typename T>
int clear(PyObject *self) {
    for (PyObject *&held : reinterpret_cast<T *>(self)->held) Py_CLEAR(held);
    return 0;
}

template <typename T>
void destroy(PyObject *self) {
    PyObject_GC_UnTrack(self);
    clear<T>(self);
    Py_TYPE(self)->tp_free(self);
}

struct Layer {
    PyObject_HEAD
    enum { kModule, kSite, kShape, kAxis, kNoneDead, kFurther, kHeld };
    PyObject *held[kHeld];
    char is_ready;
    Py_ssize_t sizes[3];  // before, units, after; no units where there is no axis of them
};

struct Call {
    PyObject_HEAD
    enum { kCapture, kInvocation, kSite, kActivation, kShape, kGradient, kKept, kNode, kHeld };
    PyObject *held[kHeld];
    int depth, forward_depth, layer, step;
    char is_pooled;
};

// The memory of calls that are gone, taken again: thousands of allocations a step would make the garbage
// collector run.
constexpr int kMostSpare = 4096;
PyObject *spare[kMostSpare];
int num_spare = 0;

PyObject *allocate_call(PyTypeObject *type, Py_ssize_t items) {
    if (!num_spare || type->tp_basicsize != sizeof(Call)) return PyType_GenericAlloc(type, items);
    PyObject *self = spare[--num_spare];
    std::memset(reinterpret_cast<void *>(self), 0, sizeof(Call));
    PyObject_Init(self, type);
    PyObject_GC_Track(self);
    return self;
}

void destroy_call(PyObject *self) {
    PyObject_GC_UnTrack(self);
    clear<Call>(self);
    if (num_spare < kMostSpare && Py_TYPE(self)->tp_basicsize == sizeof(Call))
        spare[num_spare++] = self;
    else
        Py_TYPE(self)->tp_free(self);
}

struct Gate {
    PyObject_HEAD
    enum { kLayers, kRoots, kUsed, kCurrent, kHeld };
    PyObject *held[kHeld];
    char listening, in_backward, keeps_graph, discovering, watches_all;
    int own_modes;
    unsigned long thread;
    double seconds;
};

#define HELD(Type, name, place, flags) \
    {name, T_OBJECT, offsetof(Type, held) + sizeof(PyObject *) * Type::place, flags, nullptr}

PyMemberDef layer_members[] = {
    HELD(Layer, "module", kModule, 0),
    HELD(Layer, "site", kSite, 0),
    HELD(Layer, "shape", kShape, 0),
    HELD(Layer, "axis", kAxis, 0),
    HELD(Layer, "none_dead", kNoneDead, 0),
    HELD(Layer, "further", kFurther, 0),
    {"is_ready", T_BOOL, offsetof(Layer, is_ready), 0, nullptr},
    {"before", T_PYSSIZET, offsetof(Layer, sizes), 0, nullptr},
    {"units", T_PYSSIZET, offsetof(Layer, sizes) + sizeof(Py_ssize_t), 0, nullptr},
    {"after", T_PYSSIZET, offsetof(Layer, sizes) + 2 * sizeof(Py_ssize_t), 0, nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyMemberDef call_members[] = {
    HELD(Call, "capture", kCapture, READONLY),
    HELD(Call, "invocation", kInvocation, 0),
    HELD(Call, "site", kSite, 0),
    HELD(Call, "activation", kActivation, 0),
    HELD(Call, "shape", kShape, 0),
    HELD(Call, "gradient", kGradient, 0),
    HELD(Call, "kept", kKept, 0),
    HELD(Call, "node", kNode, 0),
    {"depth", T_INT, offsetof(Call, depth), 0, nullptr},
    {"forward_depth", T_INT, offsetof(Call, forward_depth), 0, nullptr},
    {"layer", T_INT, offsetof(Call, layer), 0, nullptr},
    {"step", T_INT, offsetof(Call, step), 0, nullptr},
    {"is_pooled", T_BOOL, offsetof(Call, is_pooled), 0, nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyMemberDef gate_members[] = {
    HELD(Gate, "layers", kLayers, READONLY),
    HELD(Gate, "roots", kRoots, READONLY),
    HELD(Gate, "used", kUsed, READONLY),
    HELD(Gate, "current", kCurrent, 0),
    {"listening", T_BOOL, offsetof(Gate, listening), 0, nullptr},
    {"in_backward", T_BOOL, offsetof(Gate, in_backward), 0, nullptr},
    {"keeps_graph", T_BOOL, offsetof(Gate, keeps_graph), 0, nullptr},
    {"discovering", T_BOOL, offsetof(Gate, discovering), 0, nullptr},
    {"watches_all", T_BOOL, offsetof(Gate, watches_all), 0, nullptr},
    {"own_modes", T_INT, offsetof(Gate, own_modes), 0, nullptr},
    {"thread", T_ULONG, offsetof(Gate, thread), 0, nullptr},
    {"seconds", T_DOUBLE, offsetof(Gate, seconds), 0, nullptr},
    {nullptr, 0, 0, 0, nullptr}};

extern PyTypeObject layer_type, call_type, gate_type;

// A hook on a tensor: the statistics of the gradient that arrived there.
PyObject *call_with_gradient(PyObject *self, PyObject *args, PyObject *) {
    Call *call = reinterpret_cast<Call *>(self);
    PyObject *gradient = PyTuple_GET_SIZE(args) == 1 ? PyTuple_GET_ITEM(args, 0) : nullptr;
    PyObject *capture = call->held[Call::kCapture], *invocation = call->held[Call::kInvocation];
    Gate *gate = reinterpret_cast<Gate *>(capture);
    if (!gradient || !gate || !gate->in_backward || !is_given(invocation)) Py_RETURN_NONE;
    const double started = now();
    if (is_given(call->held[Call::kActivation]) && !is_given(call->held[Call::kKept]) &&
        !gate->keeps_graph && !call->is_pooled) {
        Py_INCREF(invocation);  // other threads may run during a long pass
        PyObject *row = gradient_row_of(gradient, true);
        const bool is_done =
            row && PyDict_SetItem(gate->held[Gate::kUsed], invocation, Py_None) == 0;
        Py_DECREF(invocation);
        if (is_done) {
            Py_XSETREF(call->held[Call::kGradient], row);
            gate->seconds += now() - started;
            Py_RETURN_NONE;
        }
        Py_XDECREF(row);
        if (!forget_error()) return nullptr;
    }
    static PyObject *name = PyUnicode_InternFromString("take_gradient");
    return PyObject_CallMethodObjArgs(capture, name, self, gradient, nullptr);
}

// What `Tensor.register_hook` does, but for a handle that nobody needs: the call is its own key. False
// with an exception set.
bool hook_tensor(PyObject *tensor, PyObject *call) {
    static PyObject *name = PyUnicode_InternFromString("_backward_hooks"),
                    *node_name = PyUnicode_InternFromString("grad_fn"),
                    *note_name = PyUnicode_InternFromString("_register_hook_dict");
    PyObject *hooks = PyObject_GetAttr(tensor, name);
    if (hooks == Py_None) {
        Py_SETREF(hooks, PyODict_New());
        if (hooks && PyObject_SetAttr(tensor, name, hooks) < 0) Py_CLEAR(hooks);
        PyObject *node = hooks ? PyObject_GetAttr(tensor, node_name) : nullptr;
        PyObject *done = is_given(node) ? PyObject_CallMethodOneArg(node, note_name, tensor)
                                        : Py_XNewRef(node);
        if (!done) Py_CLEAR(hooks);
        Py_XDECREF(node), Py_XDECREF(done);
    }
    const bool is_done = hooks && PyObject_SetItem(hooks, call, call) == 0;
    Py_XDECREF(hooks);
    return is_done;
}

bool has_shape(const DLTensor &x, PyObject *shape) {
    if (!shape || !PyTuple_Check(shape) || PyTuple_GET_SIZE(shape) != x.ndim) return false;
    for (int i = 0; i < x.ndim; ++i)
        if (PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i)) != x.shape[i]) return false;
    return true;
}

// The row of an activation; null where Python must look.
PyObject *activation_row_of(const Layer *layer, const DLTensor &x, Py_ssize_t elements) {
    double numbers[kMostMoments];
    const int64_t zeros = activation_moments(x.data, elements, 4, numbers);
    if (zeros < 0) return nullptr;
    PyObject *dead = Py_NewRef(Py_None);
    const Py_ssize_t units = layer->sizes[1];
    if (units && zeros < elements / units) {  // too few zeros for even one dead unit
        Py_SETREF(dead, Py_NewRef(layer->held[Layer::kNoneDead]));
    } else if (units) {
        PyObject *found = zero_units_of(x.data, layer->sizes, 4);
        Py_SETREF(dead, found ? PyObject_CallOneArg(as_mask, found) : nullptr);
        Py_XDECREF(found);
        if (!dead) return nullptr;
    }
    PyObject *row = row_of(elements, numbers, num_activation, dead);
    Py_DECREF(dead);
    return row;
}

// A call of a layer as the hook of its output; false where Python must look, with nothing done, and
// where an exception is set.
bool observe(Gate *gate, Layer *layer, PyObject *tensor) {
    static PyObject *wants_name = PyUnicode_InternFromString("requires_grad"),
                    *calls_name = PyUnicode_InternFromString("calls");
    PyObject *invocation = gate->held[Gate::kCurrent];
    DLTensor x;
    Py_ssize_t elements;
    if (!is_given(invocation) || !read(tensor, &x, &elements)) return false;
    if (!has_shape(x, layer->held[Layer::kShape])) return false;
    PyObject *negated = PyObject_CallOneArg(is_negated, tensor);
    Py_XDECREF(negated);
    if (negated != Py_False) {
        forget_error();
        return false;
    }
    Py_INCREF(invocation);  // other threads may run during a long pass
    PyObject *wants_gradient = PyObject_GetAttr(tensor, wants_name);
    PyObject *calls = PyObject_GetAttr(invocation, calls_name);
    PyObject *row = activation_row_of(layer, x, elements);
    PyObject *made = row ? call_type.tp_alloc(&call_type, 0) : nullptr;
    bool is_done = wants_gradient && calls && made;
    if (made) {
        PyObject **held = reinterpret_cast<Call *>(made)->held;
        reinterpret_cast<Call *>(made)->layer = reinterpret_cast<Call *>(made)->step = -1;
        held[Call::kCapture] = Py_NewRef(reinterpret_cast<PyObject *>(gate));
        held[Call::kInvocation] = Py_NewRef(invocation);
        held[Call::kSite] = Py_XNewRef(layer->held[Layer::kSite]);
        held[Call::kActivation] = Py_NewRef(row);
        held[Call::kShape] = Py_XNewRef(layer->held[Layer::kShape]);
        if (is_done && wants_gradient == Py_True) is_done = hook_tensor(tensor, made);
        is_done = is_done && PyList_Append(calls, made) == 0;
    }
    Py_XDECREF(wants_gradient), Py_XDECREF(calls), Py_XDECREF(row), Py_XDECREF(made);
    Py_DECREF(invocation);
    return forget_error() && is_done;
}

// The tensors of a tuple, where Python has taken tensors of these shapes one by one; as above.
bool observe_all(Gate *gate, Layer *layer, PyObject *module, PyObject *output) {
    static PyObject *name = PyUnicode_InternFromString("take_further");
    PyObject *further = layer->held[Layer::kFurther], *first = PyTuple_GET_ITEM(output, 0);
    const Py_ssize_t count = PyTuple_GET_SIZE(output);
    auto layer_at = [&](Py_ssize_t i) {
        return reinterpret_cast<Layer *>(PyTuple_GET_ITEM(further, i - 1));
    };
    for (Py_ssize_t i = 1; i < count; ++i) {
        PyObject *tensor = PyTuple_GET_ITEM(output, i);
        if (Py_TYPE(tensor) != Py_TYPE(first) || Py_TYPE(layer_at(i)) != &layer_type) return false;
        if (!layer_at(i)->is_ready) return false;
        for (Py_ssize_t j = 0; j < i; ++j)
            if (PyTuple_GET_ITEM(output, j) == tensor) return false;
    }
    if (!observe(gate, layer, first)) return false;
    Py_INCREF(further);
    bool is_done = true;
    for (Py_ssize_t i = 1; is_done && i < count; ++i) {
        PyObject *tensor = PyTuple_GET_ITEM(output, i);
        if (observe(gate, layer_at(i), tensor)) continue;
        PyObject *done = PyErr_Occurred() ? nullptr
                                          : PyObject_CallMethodObjArgs(
                                                reinterpret_cast<PyObject *>(gate), name, layer_at(i),
                                                module, tensor, nullptr);
        is_done = done != nullptr;
        Py_XDECREF(done);
    }
    Py_DECREF(further);
    return is_done;
}

// A context manager that was entered; null with an exception set.
PyObject *entered(PyObject *guard) {
    PyObject *done = guard ? PyObject_CallMethod(guard, "__enter__", nullptr) : nullptr;
    if (!done) Py_CLEAR(guard);
    Py_XDECREF(done);
    return guard;
}

// Leave a context manager, if there is one; false with an exception set, an earlier one included.
bool left(PyObject *guard) {
    if (!guard) return !PyErr_Occurred();
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *done = PyObject_CallMethod(guard, "__exit__", "OOO", Py_None, Py_None, Py_None);
    Py_DECREF(guard), Py_XDECREF(done);
    if (type) PyErr_Restore(type, value, trace);
    return !PyErr_Occurred();
}

// Whether nothing is left to do about a call of this module.
PyObject *take(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    Gate *gate = reinterpret_cast<Gate *>(self);
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "take takes a module and its output");
        return nullptr;
    }
    PyObject *module = args[0], *output = args[1], *key = PyLong_FromVoidPtr(module);
    if (!key) return nullptr;
    const bool is_root = gate->watches_all || PyDict_GetItem(gate->held[Gate::kRoots], key);
    Layer *layer = reinterpret_cast<Layer *>(PyDict_GetItem(gate->held[Gate::kLayers], key));
    Py_DECREF(key);
    if (is_root) Py_RETURN_FALSE;
    if (gate->thread && gate->thread != PyThread_get_thread_ident())  // perhaps one of the engine
        return PyBool_FromLong(!gate->in_backward || !is_given(gate->held[Gate::kCurrent]));
    if (!layer || Py_TYPE(layer) != &layer_type) Py_RETURN_TRUE;
    PyObject *ref = layer->held[Layer::kModule];  // weak: another module may have that address now
    if (!ref || !PyWeakref_Check(ref) || PyWeakref_GET_OBJECT(ref) != module) Py_RETURN_TRUE;
    if (!gate->listening) Py_RETURN_TRUE;
    // In a backward pass only what is computed again matters.
    if (gate->in_backward && !is_given(gate->held[Gate::kCurrent])) Py_RETURN_TRUE;
    if (!layer->is_ready || gate->discovering) Py_RETURN_FALSE;
    for (PyObject *ask : {is_grad_enabled, functorch_level}) {
        PyObject *answer = PyObject_CallNoArgs(ask);
        if (!answer) return nullptr;
        const bool is_usual = answer == (ask == is_grad_enabled ? Py_True : Py_None);
        Py_DECREF(answer);
        if (!is_usual) Py_RETURN_TRUE;
    }
    // A mode of the program would see what is asked of a tensor. (A trace and modes of other kinds
    // are seen where a root is called: then there is no forward pass to add to.)
    PyObject *modes = PyObject_CallNoArgs(num_function_modes);
    const long num_modes = modes ? PyLong_AsLong(modes) : -1;
    Py_XDECREF(modes);
    if (num_modes < 0) return nullptr;
    if (num_modes != gate->own_modes) Py_RETURN_FALSE;
    PyObject *guard = nullptr;  // our own modes need not see it either
    if (num_modes && !(guard = entered(PyObject_CallNoArgs(without_functions)))) return nullptr;
    const double started = now();
    Py_INCREF(layer);
    PyObject *further = layer->held[Layer::kFurther];
    const bool is_tuple = further && PyTuple_CheckExact(further) && PyTuple_CheckExact(output) &&
                          PyTuple_GET_SIZE(output) == PyTuple_GET_SIZE(further) + 1;
    const bool is_done = is_tuple ? observe_all(gate, layer, module, output) : observe(gate, layer, output);
    Py_DECREF(layer);
    if (!left(guard)) return nullptr;
    if (is_done) gate->seconds += now() - started;
    return PyBool_FromLong(is_done);
}

int make_call(PyObject *self, PyObject *args, PyObject *) {
    if (PyTuple_GET_SIZE(args) != 5 || !PyObject_TypeCheck(PyTuple_GET_ITEM(args, 0), &gate_type)) {
        PyErr_SetString(PyExc_TypeError, "Call takes a gate, invocation, site, activation, shape");
        return -1;
    }
    for (int i = 0; i < 5; ++i)
        Py_XSETREF(reinterpret_cast<Call *>(self)->held[i], Py_NewRef(PyTuple_GET_ITEM(args, i)));
    reinterpret_cast<Call *>(self)->layer = reinterpret_cast<Call *>(self)->step = -1;
    return 0;
}

int make_gate(PyObject *self, PyObject *, PyObject *) {
    Gate *gate = reinterpret_cast<Gate *>(self);
    for (int place : {Gate::kLayers, Gate::kRoots, Gate::kUsed}) {
        PyObject *made = PyDict_New();
        if (!made) return -1;
        Py_XSETREF(gate->held[place], made);
    }
    return 0;
}

PyMethodDef gate_methods[] = {
    {"take", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(take)), METH_FASTCALL,
     "Take the statistics of a module's output; False where Python must look."},
    {nullptr, nullptr, 0, nullptr}};

template <typename T>
PyTypeObject type_named(const char *name, PyMemberDef *members) {
    PyTypeObject type = {PyVarObject_HEAD_INIT(nullptr, 0)};
    type.tp_name = name;
    type.tp_basicsize = sizeof(T);
    type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE;
    type.tp_new = PyType_GenericNew;
    type.tp_traverse = traverse<T>;
    type.tp_clear = clear<T>;
    type.tp_dealloc = destroy<T>;
    type.tp_members = members;
    return type;
}

PyTypeObject layer_type = type_named<Layer>("analyzer.recording._scan.Layer", layer_members);
PyTypeObject call_type = type_named<Call>("analyzer.recording._scan.Call", call_members);
PyTypeObject gate_type = type_named<Gate>("analyzer.recording._scan.Gate", gate_members);

}  // namespace

bool add_hooks(PyObject *module) {
    call_type.tp_call = call_with_gradient;
    call_type.tp_alloc = allocate_call;
    call_type.tp_dealloc = destroy_call;
    call_type.tp_init = make_call;
    gate_type.tp_init = make_gate;
    gate_type.tp_methods = gate_methods;
    for (PyTypeObject *type : {&layer_type, &call_type, &gate_type})
        if (PyModule_AddType(module, type) < 0) return false;
    // torch warns about hooks on a tensor that is saved, unless they say that they are not saved.
    return PyDict_SetItemString(call_type.tp_dict, "__torch_unserializable__", Py_True) == 0;
}

}  // namespace reading
