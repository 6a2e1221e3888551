// Dot products of two gradients in host memory, in one pass and without a copy in float64.
//
// Products of float32 elements neither vanish nor overflow in float64. The three sums are made alike, element
// by element, so that for b = -a they cancel to zero exactly.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>

#if defined(__GNUC__) && defined(__x86_64__) && defined(__linux__)
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif

namespace {

constexpr Py_ssize_t kLanes = 16;
constexpr Py_ssize_t kReleaseLock = 1 << 16;

FOR_EVERY_PROCESSOR
void dots(const float *a, const float *b, Py_ssize_t count, double *sums) {
    double aa[kLanes] = {}, ab[kLanes] = {}, bb[kLanes] = {};
    const Py_ssize_t whole = count - count % kLanes;
    for (Py_ssize_t i = 0; i < whole; i += kLanes) {
        for (Py_ssize_t lane = 0; lane < kLanes; ++lane) {
            const double x = a[i + lane], y = b[i + lane];
            aa[lane] += x * x;
            ab[lane] += x * y;
            bb[lane] += y * y;
        }
    }
    for (Py_ssize_t i = whole; i < count; ++i) {
        const double x = a[i], y = b[i];
        aa[0] += x * x;
        ab[0] += x * y;
        bb[0] += y * y;
    }
    for (Py_ssize_t lane = 0; lane < kLanes; ++lane) {
        sums[0] += aa[lane];
        sums[1] += ab[lane];
        sums[2] += bb[lane];
    }
}

FOR_EVERY_PROCESSOR
double square(const float *a, Py_ssize_t count) {
    double aa[kLanes] = {}, sum = 0;
    const Py_ssize_t whole = count - count % kLanes;
    for (Py_ssize_t i = 0; i < whole; i += kLanes) {
        for (Py_ssize_t lane = 0; lane < kLanes; ++lane) {
            const double x = a[i + lane];
            aa[lane] += x * x;
        }
    }
    for (Py_ssize_t i = whole; i < count; ++i) {
        const double x = a[i];
        aa[0] += x * x;
    }
    for (Py_ssize_t lane = 0; lane < kLanes; ++lane) sum += aa[lane];
    return sum;
}

PyObject *products(PyObject *, PyObject *args) {
    unsigned long long a, b;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "KKn", &a, &b, &count)) return nullptr;
    double sums[3] = {};
    PyThreadState *state = count >= kReleaseLock ? PyEval_SaveThread() : nullptr;
    dots(reinterpret_cast<const float *>(a), reinterpret_cast<const float *>(b), count, sums);
    if (state) PyEval_RestoreThread(state);
    return Py_BuildValue("ddd", sums[0], sums[1], sums[2]);
}

PyObject *squares(PyObject *, PyObject *args) {
    unsigned long long a;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "Kn", &a, &count)) return nullptr;
    PyThreadState *state = count >= kReleaseLock ? PyEval_SaveThread() : nullptr;
    const double sum = square(reinterpret_cast<const float *>(a), count);
    if (state) PyEval_RestoreThread(state);
    return PyFloat_FromDouble(sum);
}

PyMethodDef methods[] = {
    {"products", products, METH_VARARGS, "products(a, b, count): sums of a*a, a*b and b*b of float32 at two addresses."},
    {"squares", squares, METH_VARARGS, "squares(a, count): the sum of squares of float32 at an address."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_products", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__products() { return PyModule_Create(&module); }
