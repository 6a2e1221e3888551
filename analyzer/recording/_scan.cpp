// What recording does for every layer and parameter of every step: read a tensor in host memory once,
// and keep what its statistics need. The hooks are here, too: between two operators of a training all
// code is cold, and a few hundred lines of Python cost more than the reading.
//
// Sums are kept in float64, where squares of float32 neither vanish nor overflow. A result is None where
// they might have, or where an element is not finite: then `numpy_statistics` decides.

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <type_traits>

#if defined(__GNUC__) && defined(__x86_64__) && defined(__linux__)
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define HAS_X86
#else
#define FOR_EVERY_PROCESSOR
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

constexpr Py_ssize_t kReleaseLock = 1 << 20;
constexpr Py_ssize_t kAhead = 2048;  // elements: far enough for memory that is in no cache
constexpr Py_ssize_t kAtOnce = 16;
// Between these a sum of squares in float64 has lost nothing; float32 elements never leave the range.
constexpr double kSmallest = 1e-280, kLargest = 1e300;
// Below this part of the mean square, a variance from sums has too few digits.
constexpr double kCancellation = 1e-9;

struct Totals {
    double squares = 0, sum = 0;
    double low = std::numeric_limits<double>::infinity();
    double high = -std::numeric_limits<double>::infinity();
    int64_t zeros = 0;
};

// What is asked of an element: its sign (for an activation) or its magnitude (for a gradient).
enum Wanted { kActivation, kGradient, kGradientWithZeros, kSquares };

template <typename T, int kLanes>
struct Vector {
    typedef T Type __attribute__((vector_size(kLanes * sizeof(T))));
    typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Integer;
    typedef Integer Integers __attribute__((vector_size(kLanes * sizeof(T))));
};

template <typename V, typename T>
INLINE V load(const T *x) {
    V value;
    std::memcpy(&value, x, sizeof value);
    return value;
}

// The same bits without the sign.
template <typename V, typename Integers>
INLINE V magnitude(V value) {
    Integers bits = load<Integers>(&value);
    bits &= sizeof(value[0]) == 4 ? 0x7fffffff : 0x7fffffffffffffff;
    return load<V>(&bits);
}

// Compilers up to GCC 12 take such a conversion apart into a dozen instructions.
template <int kLanes>
INLINE typename Vector<double, kLanes>::Type widened(const float *x) {
    typename Vector<double, kLanes>::Type wide;
    typedef typename Vector<float, kLanes>::Type Narrow;
#ifdef HAS_X86
    if constexpr (kLanes >= 4) {
        asm("vcvtps2pd %1, %0" : "=v"(wide) : "m"(*reinterpret_cast<const Narrow *>(x)));
        return wide;
    }
#endif
    return __builtin_convertvector(load<Narrow>(x), decltype(wide));
}

template <int kLanes>
INLINE typename Vector<double, kLanes>::Type widened(const double *x) {
    return load<typename Vector<double, kLanes>::Type>(x);
}

// One pass in registers of so many doubles; several sums each, so that none waits for the one before.
template <Wanted wanted, int kLanes, typename T>
INLINE Totals pass(const T *x, Py_ssize_t n) {
    typedef Vector<double, kLanes> Wide;
    typedef Vector<T, kLanes * 8 / sizeof(T)> Narrow;
    constexpr int kSums = kAtOnce / kLanes, kWidth = kLanes * 8 / sizeof(T);
    constexpr bool is_gradient = wanted == kGradient || wanted == kGradientWithZeros;
    typename Wide::Type squares[kSums] = {}, sums[kSums] = {};
    typename Narrow::Type low = typename Narrow::Type{} + std::numeric_limits<T>::infinity();
    typename Narrow::Type high = is_gradient ? typename Narrow::Type{} : -low;
    typename Narrow::Integers zeros = {};
    Py_ssize_t i = 0;
    for (; i + kAtOnce <= n; i += kAtOnce) {
        __builtin_prefetch(x + i + kAhead * 4 / sizeof(T), 0, 2);
#pragma GCC unroll 16
        for (int j = 0; j < kSums; ++j) {
            auto value = widened<kLanes>(x + i + j * kLanes);
            squares[j] += value * value;
            if constexpr (is_gradient)
                sums[j] += magnitude<typename Wide::Type, typename Wide::Integers>(value);
            if constexpr (wanted == kActivation) sums[j] += value;
        }
        if constexpr (wanted == kSquares) continue;
#pragma GCC unroll 16
        for (int j = 0; j < kAtOnce; j += kWidth) {
            auto value = load<typename Narrow::Type>(x + i + j);
            if constexpr (wanted != kGradient) zeros -= value == 0;  // a true comparison is -1
            if constexpr (is_gradient)
                value = magnitude<typename Narrow::Type, typename Narrow::Integers>(value);
            if constexpr (wanted == kActivation) low = value < low ? value : low;
            high = value > high ? value : high;
        }
    }
    Totals t;
    for (int j = 0; j < kSums; ++j)
        for (int k = 0; k < kLanes; ++k) t.squares += squares[j][k], t.sum += sums[j][k];
    for (int k = 0; k < kWidth && wanted != kSquares; ++k) {
        if (low[k] < t.low) t.low = low[k];
        if (high[k] > t.high) t.high = high[k];
        t.zeros += zeros[k];
    }
    for (const T *end = x + n, *rest = x + i; rest < end; ++rest) {
        const double value = is_gradient ? std::fabs(*rest) : *rest;
        t.squares += value * value;
        t.sum += value;
        if (value < t.low) t.low = value;
        if (value > t.high) t.high = value;
        t.zeros += value == 0;
    }
    return t;
}

#ifdef HAS_X86
template <Wanted wanted, typename T>
__attribute__((target("arch=x86-64-v4"))) Totals pass_512(const T *x, Py_ssize_t n) {
    return pass<wanted, 8>(x, n);
}
template <Wanted wanted, typename T>
__attribute__((target("arch=x86-64-v3"))) Totals pass_256(const T *x, Py_ssize_t n) {
    return pass<wanted, 4>(x, n);
}
#endif

template <Wanted wanted, typename T>
Totals scan(const T *x, Py_ssize_t n) {
#ifdef HAS_X86
    static const bool has_512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
    static const bool has_256 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_512) return pass_512<wanted>(x, n);
    if (has_256) return pass_256<wanted>(x, n);
#endif
    return pass<wanted, 2>(x, n);
}

template <typename T>
inline bool all_zero(const T *x, Py_ssize_t n) {
    constexpr Py_ssize_t kChunk = 64;  // without a branch inside, so that it becomes one of lanes
    Py_ssize_t i = 0;
    for (; i + kChunk <= n; i += kChunk) {
        int nonzero = 0;
        for (Py_ssize_t j = 0; j < kChunk; ++j) nonzero |= x[i + j] != 0;
        if (nonzero) return false;
    }
    for (; i < n; ++i)
        if (x[i] != 0) return false;
    return true;
}

// Whether each unit is zero in all of x, seen as [before, units, after]; stops as soon as it is known.
template <typename T>
inline void find_zero_units(const T *x, Py_ssize_t before, Py_ssize_t units, Py_ssize_t after,
                            char *out) {
    std::memset(out, 1, units);
    if (after == 1) {  // row by row, as the elements lie in memory
        for (Py_ssize_t b = 0; b < before; ++b) {
            const T *row = x + b * units;
            char any = 0;
            for (Py_ssize_t unit = 0; unit < units; ++unit) {
                out[unit] &= row[unit] == 0;
                any |= out[unit];
            }
            if (!any) return;
        }
        return;
    }
    for (Py_ssize_t unit = 0; unit < units; ++unit)
        for (Py_ssize_t b = 0; out[unit] && b < before; ++b)
            out[unit] = all_zero(x + (b * units + unit) * after, after);
}

FOR_EVERY_PROCESSOR
void zero_units_of_floats(const float *x, const Py_ssize_t *sizes, char *out) {
    find_zero_units(x, sizes[0], sizes[1], sizes[2], out);
}

FOR_EVERY_PROCESSOR
void zero_units_of_doubles(const double *x, const Py_ssize_t *sizes, char *out) {
    find_zero_units(x, sizes[0], sizes[1], sizes[2], out);
}

PyObject *numbers_of(const double *values, Py_ssize_t count) {
    PyObject *numbers = PyTuple_New(count);
    for (Py_ssize_t i = 0; numbers && i < count; ++i) {
        PyObject *value = PyFloat_FromDouble(values[i]);
        if (!value) Py_CLEAR(numbers);
        if (numbers) PyTuple_SET_ITEM(numbers, i, value);
    }
    return numbers;
}

// Lets other threads run during a pass that takes long.
template <Wanted wanted>
Totals scan_unlocked(const void *x, Py_ssize_t n, Py_ssize_t size) {
    PyThreadState *state = n > kReleaseLock ? PyEval_SaveThread() : nullptr;
    const Totals t = size == 4 ? scan<wanted>(static_cast<const float *>(x), n)
                               : scan<wanted>(static_cast<const double *>(x), n);
    if (state) PyEval_RestoreThread(state);
    return t;
}

// norm, mean, std, min, max, zeros, non-finite elements; false where they are not safe.
bool activation_numbers(const void *x, Py_ssize_t n, Py_ssize_t size, double *out) {
    const Totals t = scan_unlocked<kActivation>(x, n, size);
    const double square = t.squares / n, mean = t.sum / n;
    const double variance = square - mean * mean;
    if (!(t.squares >= kSmallest && t.squares <= kLargest && variance > kCancellation * square))
        return false;
    const double found[] = {std::sqrt(t.squares), mean,  std::sqrt(variance), t.low, t.high,
                            double(t.zeros),      0.0};
    std::memcpy(out, found, sizeof found);
    return true;
}

// norm, mean_abs, max_abs, zeros where they are counted, non-finite elements.
bool gradient_numbers(const void *x, Py_ssize_t n, Py_ssize_t size, bool count_zeros, double *out) {
    const Totals t = count_zeros ? scan_unlocked<kGradientWithZeros>(x, n, size)
                                 : scan_unlocked<kGradient>(x, n, size);
    const bool is_zero = t.squares == 0 && t.high == 0;
    if (!is_zero && !(t.squares >= kSmallest && t.squares <= kLargest)) return false;
    const double found[] = {std::sqrt(t.squares), t.sum / n, t.high, double(t.zeros), 0.0};
    std::memcpy(out, found, sizeof found);
    return true;
}

PyObject *zero_units_of(const void *x, const Py_ssize_t *sizes, Py_ssize_t size) {
    PyObject *result = PyBytes_FromStringAndSize(nullptr, sizes[1]);
    if (!result) return nullptr;
    char *out = PyBytes_AS_STRING(result);
    if (size == 4)
        zero_units_of_floats(static_cast<const float *>(x), sizes, out);
    else
        zero_units_of_doubles(static_cast<const double *>(x), sizes, out);
    return result;
}

// --- tensors ----------------------------------------------------------------------------------

// What torch needs to be asked for; set by `prepare`.
PyObject *tensor_type, *parameter_type, *is_grad_enabled, *functorch_level, *as_mask;

// The part of DLPack's exchange table that reads a tensor without making anything.
struct DLTensor {
    void *data;
    int32_t device_type, device_id, ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};
struct ExchangeTable {
    uint32_t major, minor;
    void *previous, *allocate, *export_tensor, *import_tensor;
    int (*describe)(void *tensor, DLTensor *out);
    void *stream;
};
const ExchangeTable *exchange;

// A plain, contiguous float32 tensor with elements in host memory; false for all else.
bool read(PyObject *tensor, DLTensor *out, Py_ssize_t *elements) {
    PyObject *type = reinterpret_cast<PyObject *>(Py_TYPE(tensor));
    if (!exchange || (type != tensor_type && type != parameter_type)) return false;
    if (exchange->describe(tensor, out) != 0) {
        PyErr_Clear();
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

// Numbers of one tensor, with the names of an `ActivationRow` or a `GradientRow`. The garbage collector
// does not see it: hundreds of tuples a step would make it run.
struct Row {
    PyObject_HEAD
    Py_ssize_t elements;
    int count;
    double numbers[7];
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

PyObject *row_of(Py_ssize_t elements, const double *numbers, int count, PyObject *dead) {
    Row *row = PyObject_New(Row, &row_type);
    if (!row) return nullptr;
    row->elements = elements;
    row->count = count;
    std::memcpy(row->numbers, numbers, count * sizeof(double));
    row->dead = Py_XNewRef(dead);
    return reinterpret_cast<PyObject *>(row);
}

// The row of a gradient; null without an exception where Python must look.
PyObject *gradient_row_of(PyObject *gradient, bool count_zeros) {
    DLTensor x;
    Py_ssize_t elements;
    double numbers[5];
    if (!read(gradient, &x, &elements)) return nullptr;
    if (!gradient_numbers(x.data, elements, 4, count_zeros, numbers)) return nullptr;
    return row_of(elements, numbers, 5, nullptr);
}

// --- hooks ------------------------------------------------------------------------------------

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

// The names are those of the Python twins in `plain_hooks`.
struct Layer {
    PyObject_HEAD
    enum { kModule, kSite, kShape, kAxis, kNoneDead, kHeld };
    PyObject *held[kHeld];
    char is_ready;
    Py_ssize_t sizes[3];  // before, units, after; no units where there is no axis of them
};

struct Call {
    PyObject_HEAD
    enum { kCapture, kInvocation, kSite, kActivation, kShape, kGradient, kKept, kNode, kHooks, kHeld };
    PyObject *held[kHeld];
    int depth, forward_depth, layer, step;
    char is_pooled;
};

struct Gate {
    PyObject_HEAD
    enum { kLayers, kRoots, kUsed, kCurrent, kHeld };
    PyObject *held[kHeld];
    char listening, in_backward, keeps_graph, discovering, watches_all;
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
    HELD(Call, "hooks", kHooks, 0),
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
    {"seconds", T_DOUBLE, offsetof(Gate, seconds), 0, nullptr},
    {nullptr, 0, 0, 0, nullptr}};

extern PyTypeObject layer_type, call_type, gate_type;

bool is_given(PyObject *held) { return held && held != Py_None; }

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
        PyErr_Clear();
    }
    static PyObject *name = PyUnicode_InternFromString("take_gradient");
    return PyObject_CallMethodObjArgs(capture, name, self, gradient, nullptr);
}

// What `Tensor.register_hook` does, but for a handle that nobody needs: the call is its own key.
// Returns the dictionary of the tensor's hooks.
PyObject *hook_tensor(PyObject *tensor, PyObject *call) {
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
    if (hooks && PyObject_SetItem(hooks, call, call) < 0) Py_CLEAR(hooks);
    return hooks;
}

bool has_shape(const DLTensor &x, PyObject *shape) {
    if (!shape || !PyTuple_Check(shape) || PyTuple_GET_SIZE(shape) != x.ndim) return false;
    for (int i = 0; i < x.ndim; ++i)
        if (PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i)) != x.shape[i]) return false;
    return true;
}

// The row of an activation; null where Python must look.
PyObject *activation_row_of(const Layer *layer, const DLTensor &x, Py_ssize_t elements) {
    double numbers[7];
    if (!activation_numbers(x.data, elements, 4, numbers)) return nullptr;
    PyObject *dead = Py_NewRef(Py_None);
    const Py_ssize_t units = layer->sizes[1];
    if (units && numbers[5] < double(elements / units)) {  // too few zeros for even one dead unit
        Py_SETREF(dead, Py_NewRef(layer->held[Layer::kNoneDead]));
    } else if (units) {
        PyObject *found = zero_units_of(x.data, layer->sizes, 4);
        Py_SETREF(dead, found ? PyObject_CallOneArg(as_mask, found) : nullptr);
        Py_XDECREF(found);
        if (!dead) return nullptr;
    }
    PyObject *row = row_of(elements, numbers, 7, dead);
    Py_DECREF(dead);
    return row;
}

// A call of a layer as the hook of its output; false where Python must look, with nothing done.
bool observe(Gate *gate, Layer *layer, PyObject *tensor) {
    static PyObject *wants_name = PyUnicode_InternFromString("requires_grad"),
                    *calls_name = PyUnicode_InternFromString("calls");
    PyObject *invocation = gate->held[Gate::kCurrent];
    DLTensor x;
    Py_ssize_t elements;
    if (!is_given(invocation) || !read(tensor, &x, &elements)) return false;
    if (!has_shape(x, layer->held[Layer::kShape])) return false;
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
        if (is_done && wants_gradient == Py_True) {
            PyObject *hooks = hook_tensor(tensor, made);
            held[Call::kHooks] = hooks ? PyWeakref_NewRef(hooks, nullptr) : nullptr;
            is_done = hooks != nullptr;
            Py_XDECREF(hooks);
        }
        is_done = is_done && PyList_Append(calls, made) == 0;
    }
    Py_XDECREF(wants_gradient), Py_XDECREF(calls), Py_XDECREF(row), Py_XDECREF(made);
    Py_DECREF(invocation);
    PyErr_Clear();
    return is_done;
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
    if (!layer || Py_TYPE(layer) != &layer_type) Py_RETURN_TRUE;
    PyObject *ref = layer->held[Layer::kModule];  // weak: another module may have that address now
    if (!ref || !PyWeakref_Check(ref) || PyWeakref_GET_OBJECT(ref) != module) Py_RETURN_TRUE;
    if (!gate->listening || gate->in_backward) Py_RETURN_TRUE;
    if (!layer->is_ready || gate->discovering) Py_RETURN_FALSE;
    for (PyObject *ask : {is_grad_enabled, functorch_level}) {
        PyObject *answer = PyObject_CallNoArgs(ask);
        if (!answer) return nullptr;
        const bool is_usual = answer == (ask == is_grad_enabled ? Py_True : Py_None);
        Py_DECREF(answer);
        if (!is_usual) Py_RETURN_TRUE;
    }
    const double started = now();
    Py_INCREF(layer);
    const bool is_done = observe(gate, layer, output);
    Py_DECREF(layer);
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

// --- functions --------------------------------------------------------------------------------

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
    double numbers[7];
    if (!integers(args, count, 3, given)) return nullptr;
    if (!activation_numbers(reinterpret_cast<void *>(given[0]), given[1], given[2], numbers))
        Py_RETURN_NONE;
    return numbers_of(numbers, 7);
}

PyObject *gradient(PyObject *, PyObject *const *args, Py_ssize_t count) {
    Py_ssize_t given[3];
    double numbers[5];
    if (!integers(args, count, 3, given)) return nullptr;
    if (!gradient_numbers(reinterpret_cast<void *>(given[0]), given[1], given[2], true, numbers))
        Py_RETURN_NONE;
    return numbers_of(numbers, 5);
}

PyObject *squares(PyObject *, PyObject *const *args, Py_ssize_t count) {
    Py_ssize_t given[2];
    if (!integers(args, count, 2, given)) return nullptr;
    const void *x = reinterpret_cast<void *>(given[0]);
    return PyFloat_FromDouble(scan_unlocked<kSquares>(x, given[1], 4).squares);
}

PyObject *zero_units(PyObject *, PyObject *const *args, Py_ssize_t count) {
    Py_ssize_t given[5];
    if (!integers(args, count, 5, given)) return nullptr;
    return zero_units_of(reinterpret_cast<void *>(given[0]), given + 1, given[4]);
}

// (norm, row of the gradient or None) of one parameter; null where Python must look.
PyObject *parameter_of(PyObject *parameter) {
    DLTensor x;
    Py_ssize_t elements;
    if (!read(parameter, &x, &elements)) return nullptr;
    static PyObject *name = PyUnicode_InternFromString("grad");
    PyObject *given = PyObject_GetAttr(parameter, name);
    PyObject *row = is_given(given) ? gradient_row_of(given, false) : Py_XNewRef(given);
    Py_XDECREF(given);
    if (!row) return nullptr;
    const double norm = std::sqrt(scan_unlocked<kSquares>(x.data, elements, 4).squares);
    return Py_BuildValue("dN", norm, row);
}

PyObject *parameters(PyObject *, PyObject *tensors) {
    if (!PyList_Check(tensors)) {
        PyErr_SetString(PyExc_TypeError, "parameters takes a list of tensors");
        return nullptr;
    }
    PyObject *results = PyList_New(PyList_GET_SIZE(tensors));
    for (Py_ssize_t i = 0; results && i < PyList_GET_SIZE(tensors); ++i) {
        PyObject *result = parameter_of(PyList_GET_ITEM(tensors, i));
        PyErr_Clear();
        PyList_SET_ITEM(results, i, result ? result : Py_NewRef(Py_None));
    }
    return results;
}

PyObject *prepare(PyObject *, PyObject *args) {
    PyObject **places[] = {&tensor_type, &parameter_type, &is_grad_enabled, &functorch_level,
                           &as_mask};
    if (PyTuple_GET_SIZE(args) != 5) {
        PyErr_SetString(PyExc_TypeError, "prepare takes five objects");
        return nullptr;
    }
    for (int i = 0; i < 5; ++i) Py_XSETREF(*places[i], Py_NewRef(PyTuple_GET_ITEM(args, i)));
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
    {"activation", fast(activation), METH_FASTCALL, "The seven numbers of an activation, or None."},
    {"gradient", fast(gradient), METH_FASTCALL, "The five numbers of a gradient, or None."},
    {"squares", fast(squares), METH_FASTCALL, "Sum of squares of float32 elements."},
    {"zero_units", fast(zero_units), METH_FASTCALL,
     "For each unit of [before, units, after] a byte: 1 where it is zero in all."},
    {"parameters", parameters, METH_O, "Norm and gradient row of each parameter, or None."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_scan", "One pass over a tensor in host memory.", -1,
                      functions, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__scan() {
    call_type.tp_call = call_with_gradient;
    call_type.tp_init = make_call;
    gate_type.tp_init = make_gate;
    gate_type.tp_methods = gate_methods;
    PyObject *made = PyModule_Create(&module);
    row_type.tp_name = "analyzer.recording._scan.Row";
    row_type.tp_basicsize = sizeof(Row);
    row_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
    row_type.tp_dealloc = destroy_row;
    row_type.tp_members = row_members;
    row_type.tp_getset = row_getters;
    for (PyTypeObject *type : {&row_type, &layer_type, &call_type, &gate_type})
        if (!made || PyModule_AddType(made, type) < 0) return nullptr;
    // torch warns about hooks on a tensor that is saved, unless they say that they are not saved.
    if (PyDict_SetItemString(call_type.tp_dict, "__torch_unserializable__", Py_True) < 0)
        return nullptr;
    return made;
}
