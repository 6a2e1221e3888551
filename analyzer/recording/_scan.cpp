// One pass over a tensor in host memory: everything that its statistics need.
//
// Sums are kept in float64, where squares of float32 neither vanish nor overflow. Minimum and maximum
// are right only where every element is finite; the count of those that are not says so.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__GNUC__) && defined(__x86_64__) && defined(__linux__)
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif

namespace {

constexpr Py_ssize_t kLanes = 16;
constexpr Py_ssize_t kReleaseLock = 1 << 20;
constexpr Py_ssize_t kAhead = 2048;  // elements: far enough for memory that is in no cache

typedef float FloatLanes __attribute__((vector_size(kLanes * 4)));
typedef int32_t Int32Lanes __attribute__((vector_size(kLanes * 4)));
typedef float HalfLanes __attribute__((vector_size(kLanes * 2)));
typedef double DoubleLanes __attribute__((vector_size(kLanes * 4)));
typedef int64_t Int64Lanes __attribute__((vector_size(kLanes * 4)));

struct Totals {
    double squares = 0, sum = 0, absolute = 0;
    double low = std::numeric_limits<double>::infinity();
    double high = -std::numeric_limits<double>::infinity();
    int64_t zeros = 0, nonfinite = 0;
};

template <typename T>
inline void add_one(Totals &t, T value) {
    const double wide = value;
    t.squares += wide * wide;
    t.sum += wide;
    t.absolute += std::fabs(wide);
    if (wide < t.low) t.low = wide;
    if (wide > t.high) t.high = wide;
    t.zeros += value == 0;
}

// The rare case: a second pass, only where the sum of squares is not finite.
template <typename T>
void count_nonfinite(const T *x, Py_ssize_t n, Totals &t) {
    if (!std::isfinite(t.squares))
        for (Py_ssize_t i = 0; i < n; ++i) t.nonfinite += !std::isfinite(x[i]);
}

// Running sums in float64; they live in registers as long as no element of them is addressed.
struct Sums {
    DoubleLanes squares = {}, sum = {}, absolute = {};

    __attribute__((always_inline)) void add(DoubleLanes wide) {
        Int64Lanes bits;
        DoubleLanes positive;
        std::memcpy(&bits, &wide, sizeof bits);
        bits &= 0x7fffffffffffffff;
        std::memcpy(&positive, &bits, sizeof positive);
        squares += wide * wide;
        sum += wide;
        absolute += positive;
    }

    __attribute__((always_inline)) void collect(Totals &t) const {
        for (Py_ssize_t j = 0; j < kLanes / 2; ++j) {
            t.squares += squares[j];
            t.sum += sum[j];
            t.absolute += absolute[j];
        }
    }
};

// Running extremes, and zeros: a true comparison is -1.
template <typename Value, typename Integer>
struct Extremes {
    Value low = Value{} + std::numeric_limits<float>::infinity();
    Value high = Value{} - std::numeric_limits<float>::infinity();
    Integer zeros = {};

    __attribute__((always_inline)) void add(Value value) {
        low = value < low ? value : low;
        high = value > high ? value : high;
        zeros -= value == 0;
    }

    __attribute__((always_inline)) void collect(Totals &t) const {
        for (size_t j = 0; j < sizeof low / sizeof low[0]; ++j) {
            if (low[j] < t.low) t.low = low[j];
            if (high[j] > t.high) t.high = high[j];
            t.zeros += zeros[j];
        }
    }
};

FOR_EVERY_PROCESSOR
void scan_float(const float *x, Py_ssize_t n, Totals *out) {
    Sums first, second;  // two, so that an addition need not wait for the one before
    Extremes<FloatLanes, Int32Lanes> extremes;
    Py_ssize_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        __builtin_prefetch(x + i + kAhead);
        FloatLanes value;
        HalfLanes left, right;
        std::memcpy(&value, x + i, sizeof value);
        std::memcpy(&left, x + i, sizeof left);
        std::memcpy(&right, x + i + kLanes / 2, sizeof right);
        first.add(__builtin_convertvector(left, DoubleLanes));
        second.add(__builtin_convertvector(right, DoubleLanes));
        extremes.add(value);
    }
    Totals t;
    first.collect(t);
    second.collect(t);
    extremes.collect(t);
    for (; i < n; ++i) add_one(t, x[i]);
    count_nonfinite(x, n, t);
    *out = t;
}

FOR_EVERY_PROCESSOR
void scan_double(const double *x, Py_ssize_t n, Totals *out) {
    Sums sums;
    Extremes<DoubleLanes, Int64Lanes> extremes;
    Py_ssize_t i = 0;
    for (; i + kLanes / 2 <= n; i += kLanes / 2) {
        __builtin_prefetch(x + i + kAhead / 2);
        DoubleLanes value;
        std::memcpy(&value, x + i, sizeof value);
        sums.add(value);
        extremes.add(value);
    }
    Totals t;
    sums.collect(t);
    extremes.collect(t);
    for (; i < n; ++i) add_one(t, x[i]);
    count_nonfinite(x, n, t);
    *out = t;
}

// The sum of squares alone, for norms of which nothing else is asked.
FOR_EVERY_PROCESSOR
double squares_of_floats(const float *x, Py_ssize_t n) {
    DoubleLanes first = {}, second = {};
    Py_ssize_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        __builtin_prefetch(x + i + kAhead);
        HalfLanes left, right;
        std::memcpy(&left, x + i, sizeof left);
        std::memcpy(&right, x + i + kLanes / 2, sizeof right);
        const DoubleLanes a = __builtin_convertvector(left, DoubleLanes);
        const DoubleLanes b = __builtin_convertvector(right, DoubleLanes);
        first += a * a;
        second += b * b;
    }
    double total = 0;
    for (Py_ssize_t j = 0; j < kLanes / 2; ++j) total += first[j] + second[j];
    for (; i < n; ++i) total += static_cast<double>(x[i]) * x[i];
    return total;
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

PyObject *scan(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "scan takes address, elements, bytes an element");
        return nullptr;
    }
    const void *address = PyLong_AsVoidPtr(args[0]);
    const Py_ssize_t n = PyLong_AsSsize_t(args[1]), size = PyLong_AsSsize_t(args[2]);
    if (PyErr_Occurred()) return nullptr;
    Totals t;
    PyThreadState *state = n > kReleaseLock ? PyEval_SaveThread() : nullptr;
    if (size == 4)
        scan_float(static_cast<const float *>(address), n, &t);
    else
        scan_double(static_cast<const double *>(address), n, &t);
    if (state) PyEval_RestoreThread(state);
    return Py_BuildValue("dddddLL", t.squares, t.sum, t.absolute, t.low, t.high,
                         static_cast<long long>(t.zeros), static_cast<long long>(t.nonfinite));
}

PyObject *squares(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "squares takes address, elements");
        return nullptr;
    }
    const void *address = PyLong_AsVoidPtr(args[0]);
    const Py_ssize_t n = PyLong_AsSsize_t(args[1]);
    if (PyErr_Occurred()) return nullptr;
    PyThreadState *state = n > kReleaseLock ? PyEval_SaveThread() : nullptr;
    const double total = squares_of_floats(static_cast<const float *>(address), n);
    if (state) PyEval_RestoreThread(state);
    return PyFloat_FromDouble(total);
}

PyObject *zero_units(PyObject *, PyObject *const *args, Py_ssize_t count) {
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError,
                        "zero_units takes address, before, units, after, bytes an element");
        return nullptr;
    }
    const void *address = PyLong_AsVoidPtr(args[0]);
    Py_ssize_t sizes[4];
    for (int i = 0; i < 4; ++i) sizes[i] = PyLong_AsSsize_t(args[i + 1]);
    if (PyErr_Occurred()) return nullptr;
    PyObject *result = PyBytes_FromStringAndSize(nullptr, sizes[1]);
    if (!result) return nullptr;
    char *out = PyBytes_AS_STRING(result);
    if (sizes[3] == 4)
        zero_units_of_floats(static_cast<const float *>(address), sizes, out);
    else
        zero_units_of_doubles(static_cast<const double *>(address), sizes, out);
    return result;
}

PyMethodDef methods[] = {
    {"scan", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(scan)), METH_FASTCALL,
     "Sum of squares, sum, absolute sum, minimum, maximum, zeros, non-finite elements."},
    {"squares", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(squares)),
     METH_FASTCALL, "Sum of squares of float32 elements."},
    {"zero_units", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(zero_units)),
     METH_FASTCALL, "For each unit of [before, units, after] a byte: 1 where it is zero in all."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_scan", "One pass over a tensor in host memory.", -1,
                      methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__scan() { return PyModule_Create(&module); }
