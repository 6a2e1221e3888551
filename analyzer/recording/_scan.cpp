// What recording does for every layer and parameter of every step: read a tensor in host memory once,
// and keep what its statistics need.

#include "_scan.h"

#include <cmath>
#include <cstring>

namespace reading {
namespace {

// DLPack's table of functions, of which one reads a tensor without making anything.
struct ExchangeTable {
    uint32_t major, minor;
    void *previous, *allocate, *export_tensor, *import_tensor;
    int (*describe)(void *tensor, DLTensor *out);
    void *stream;
};
const ExchangeTable *exchange;
PyObject *tensor_type, *parameter_type;

PyObject *numbers_of(const double *values, Py_ssize_t count) {
    PyObject *numbers = PyTuple_New(count);
    for (Py_ssize_t i = 0; numbers && i < count; ++i) {
        PyObject *value = PyFloat_FromDouble(values[i]);
        if (!value) Py_CLEAR(numbers);
        if (numbers) PyTuple_SET_ITEM(numbers, i, value);
    }
    return numbers;
}

// Numbers of one tensor, with the names of an `ActivationRow` or a `GradientRow`. The garbage collector
// does not see it: hundreds of tuples a step would make it run.
struct Row {
    PyObject_HEAD
    Py_ssize_t elements;
    int count;
    double numbers[kMostMoments];
    PyObject *dead;
};

PyObject *row_numbers(PyObject *self, void *) {
    const Row *row = reinterpret_cast<Row *>(self);
    return numbers_of(row->numbers, row->count);
}

void destroy_row(PyObject *self) {
    Py_XDECREF(reinterpret_cast<Row *>(self)->dead);
    Py_TYPE(self)->tp_free(self);
}

PyMemberDef row_members[] = {{"elements", T_PYSSIZET, offsetof(Row, elements), READONLY, nullptr},
                             {"dead", T_OBJECT, offsetof(Row, dead), READONLY, nullptr},
                             {nullptr, 0, 0, 0, nullptr}};
PyGetSetDef row_getters[] = {{"numbers", row_numbers, nullptr, nullptr, nullptr},
                             {nullptr, nullptr, nullptr, nullptr, nullptr}};
PyTypeObject row_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

}  // namespace

PyObject *is_negated, *is_grad_enabled, *functorch_level, *num_function_modes, *without_functions, *as_mask;

bool read(PyObject *tensor, DLTensor *out, Py_ssize_t *elements) {
    PyObject *type = reinterpret_cast<PyObject *>(Py_TYPE(tensor));
    if (!exchange || (type != tensor_type && type != parameter_type)) return false;
    if (exchange->describe(tensor, out) != 0) {
        forget_error();
        return false;
    }
    const bool is_plain = out->device_type == 1 && out->code == 2 && out->bits == 32 &&
                          out->lanes == 1 && out->data && out->byte_offset == 0;
    int64_t count = 1;
    for (int i = out->ndim - 1; i >= 0; --i) {
        if (out->shape[i] != 1 && out->strides[i] != count) return false;
        count *= out->shape[i];
    }
    *elements = count;
    return is_plain && count > 0;
}

PyObject *row_of(Py_ssize_t elements, const double *numbers, int count, PyObject *dead) {
    Row *row = PyObject_New(Row, &row_type);
    if (!row) return nullptr;
    row->elements = elements;
    row->count = count;
    std::memcpy(row->numbers, numbers, count * sizeof(double));
    row->dead = Py_XNewRef(dead);
    return reinterpret_cast<PyObject *>(row);
}

PyObject *gradient_row_of(PyObject *gradient, bool count_zeros) {
    DLTensor x;
    Py_ssize_t elements;
    double numbers[kMostMoments];
    if (!read(gradient, &x, &elements)) return nullptr;
    if (!gradient_moments(x.data, elements, 4, count_zeros, numbers)) return nullptr;
    return row_of(elements, numbers, num_gradient, nullptr);
}

namespace {

// Address, elements and more numbers.
bool integers(PyObject *const *args, Py_ssize_t count, Py_ssize_t expected, Py_ssize_t *out) {
    if (count != expected) {
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, found %zd", expected, count);
        return false;
    }
    for (Py_ssize_t i = 0; i < count; ++i) out[i] = PyLong_AsSsize_t(args[i]);
    return !PyErr_Occurred();
}

PyObject *activation(PyObject *, PyObject *const *args, Py_ssize_t count) {
    Py_ssize_t given[3];
    double numbers[kMostMoments];
    if (!integers(args, count, 3, given)) return nullptr;
    if (activation_moments(reinterpret_cast<void *>(given[0]), given[1], given[2], numbers) < 0)
        Py_RETURN_NONE;
    return numbers_of(numbers, num_activation);
}

PyObject *gradient(PyObject *, PyObject *const *args, Py_ssize_t count) {
    Py_ssize_t given[3];
    double numbers[kMostMoments];
    if (!integers(args, count, 3, given)) return nullptr;
    if (!gradient_moments(reinterpret_cast<void *>(given[0]), given[1], given[2], true, numbers))
        Py_RETURN_NONE;
    return numbers_of(numbers, num_gradient);
}

PyObject *squares(PyObject *, PyObject *const *args, Py_ssize_t count) {
    Py_ssize_t given[2];
    if (!integers(args, count, 2, given)) return nullptr;
    return PyFloat_FromDouble(sum_of_squares(reinterpret_cast<void *>(given[0]), given[1]));
}

PyObject *zero_units(PyObject *, PyObject *const *args, Py_ssize_t count) {
    Py_ssize_t given[5];
    if (!integers(args, count, 5, given)) return nullptr;
    return zero_units_of(reinterpret_cast<void *>(given[0]), given + 1, given[4]);
}

// Bytes: elements and moments of each row of a list, as float64 side by side; None where one of them is
// not compiled, or the rows are not alike.
PyObject *moments_of(PyObject *, PyObject *rows) {
    if (!PyList_Check(rows)) {
        PyErr_SetString(PyExc_TypeError, "moments_of takes a list of rows");
        return nullptr;
    }
    const Py_ssize_t count = PyList_GET_SIZE(rows);
    Py_ssize_t moments = 0;
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject *row = PyList_GET_ITEM(rows, i);
        if (Py_TYPE(row) != &row_type) Py_RETURN_NONE;
        if (i && reinterpret_cast<Row *>(row)->count != moments) Py_RETURN_NONE;
        moments = reinterpret_cast<Row *>(row)->count;
    }
    PyObject *bytes = PyBytes_FromStringAndSize(nullptr, count * (1 + moments) * sizeof(double));
    char *place = bytes ? PyBytes_AS_STRING(bytes) : nullptr;
    for (Py_ssize_t i = 0; bytes && i < count; ++i) {
        const Row *row = reinterpret_cast<Row *>(PyList_GET_ITEM(rows, i));
        const double elements = static_cast<double>(row->elements);
        std::memcpy(place, &elements, sizeof(double));
        std::memcpy(place + sizeof(double), row->numbers, moments * sizeof(double));
        place += (1 + moments) * sizeof(double);
    }
    return bytes;
}

// Norm, and row of the gradient or None, of one parameter; false where Python must look.
bool parameter_of(PyObject *parameter, PyObject **norm, PyObject **row) {
    DLTensor x;
    Py_ssize_t elements;
    if (!read(parameter, &x, &elements)) return false;
    static PyObject *name = PyUnicode_InternFromString("grad");
    PyObject *given = PyObject_GetAttr(parameter, name);
    *row = is_given(given) ? gradient_row_of(given, false) : Py_XNewRef(given);
    Py_XDECREF(given);
    *norm = *row ? PyFloat_FromDouble(std::sqrt(sum_of_squares(x.data, elements))) : nullptr;
    if (!*norm) Py_CLEAR(*row);
    return *norm != nullptr;
}

// Two lists, since a tuple for each would let garbage be collected often.
PyObject *parameters(PyObject *, PyObject *tensors) {
    if (!PyList_Check(tensors)) {
        PyErr_SetString(PyExc_TypeError, "parameters takes a list of tensors");
        return nullptr;
    }
    const Py_ssize_t count = PyList_GET_SIZE(tensors);
    PyObject *norms = PyList_New(count), *rows = PyList_New(count);
    bool is_well = norms && rows;
    for (Py_ssize_t i = 0; is_well && i < count; ++i) {
        PyObject *norm = nullptr, *row = nullptr;
        is_well = parameter_of(PyList_GET_ITEM(tensors, i), &norm, &row) || forget_error();
        PyList_SET_ITEM(norms, i, norm ? norm : Py_NewRef(Py_None));
        PyList_SET_ITEM(rows, i, row ? row : Py_NewRef(Py_None));
    }
    PyObject *both = is_well ? PyTuple_Pack(2, norms, rows) : nullptr;
    Py_XDECREF(norms), Py_XDECREF(rows);
    return both;
}

PyObject *prepare(PyObject *, PyObject *args) {
    PyObject **places[] = {&tensor_type,     &parameter_type,     &is_negated,        &is_grad_enabled,
                           &functorch_level, &num_function_modes, &without_functions, &as_mask};
    constexpr int count = sizeof places / sizeof *places;
    if (PyTuple_GET_SIZE(args) != count) {
        PyErr_Format(PyExc_TypeError, "prepare takes %d objects", count);
        return nullptr;
    }
    for (int i = 0; i < count; ++i) Py_XSETREF(*places[i], Py_NewRef(PyTuple_GET_ITEM(args, i)));
    PyObject *capsule = PyObject_GetAttrString(tensor_type, "__dlpack_c_exchange_api__");
    void *found = capsule ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : nullptr;
    Py_XDECREF(capsule);  // the table lives as long as the process
    PyErr_Clear();
    const ExchangeTable *table = static_cast<const ExchangeTable *>(found);
    exchange = table && table->major == 1 && table->describe ? table : nullptr;
    return PyBool_FromLong(exchange != nullptr);
}

template <typename F>
PyCFunction fast(F *function) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef functions[] = {
    {"prepare", prepare, METH_VARARGS, "Say where torch's types and functions are."},
    {"activation", fast(activation), METH_FASTCALL, "The moments of an activation, or None."},
    {"gradient", fast(gradient), METH_FASTCALL, "The moments of a gradient, or None."},
    {"squares", fast(squares), METH_FASTCALL, "Sum of squares of float32 elements."},
    {"zero_units", fast(zero_units), METH_FASTCALL,
     "For each unit of [before, units, after] a byte: 1 where it is zero in all."},
    {"moments_of", moments_of, METH_O, "Elements and moments of rows as bytes, or None."},
    {"parameters", parameters, METH_O, "Norms and gradient rows of parameters, or None."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_scan", "One pass over a tensor in host memory.", -1,
                      functions, nullptr, nullptr, nullptr, nullptr};

// Add the names of moments to the module as a tuple; false with an exception set.
bool add_names(PyObject *made, const char *name, const char *const *moments, Py_ssize_t count) {
    PyObject *names = PyTuple_New(count);
    for (Py_ssize_t i = 0; names && i < count; ++i)
        PyTuple_SET_ITEM(names, i, PyUnicode_InternFromString(moments[i]));
    const bool is_added = names && PyModule_AddObjectRef(made, name, names) == 0;
    Py_XDECREF(names);
    return is_added;
}

}  // namespace
}  // namespace reading

PyMODINIT_FUNC PyInit__scan() {
    using namespace reading;
    row_type.tp_name = "analyzer.recording._scan.Row";
    row_type.tp_basicsize = sizeof(Row);
    row_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
    row_type.tp_dealloc = destroy_row;
    row_type.tp_members = row_members;
    row_type.tp_getset = row_getters;
    PyObject *made = PyModule_Create(&module);
    if (!made || PyModule_AddType(made, &row_type) < 0 || !add_hooks(made)) return nullptr;
    if (!add_names(made, "ACTIVATION", activation_names, num_activation)) return nullptr;
    if (!add_names(made, "GRADIENT", gradient_names, num_gradient)) return nullptr;
    return made;
}
