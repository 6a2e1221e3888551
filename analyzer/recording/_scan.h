// What the three sources of `_scan` share: the passes over elements (`_passes.cpp`), tensors and their
// rows (`_scan.cpp`), and the hooks of a training (`_hooks.cpp`).

#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <cstdint>

namespace reading {

// Room for the moments of one tensor; their names, in the order of the numbers, end with null.
constexpr int kMostMoments = 12;
extern const char *const activation_names[], *const gradient_names[];
extern const int num_activation, num_gradient;

// The moments of an activation; the result is the number of zeros, -1 where the moments are not safe.
// `size` is the bytes of an element: float32 or float64.
int64_t activation_moments(const void *x, Py_ssize_t n, Py_ssize_t size, double *out);

// The moments of a gradient, zeros where they are counted; false where they are not safe.
bool gradient_moments(const void *x, Py_ssize_t n, Py_ssize_t size, bool count_zeros, double *out);

double sum_of_squares(const void *x, Py_ssize_t n);

// Bytes: for each unit of x, seen as [before, units, after], 1 where it is zero in all.
PyObject *zero_units_of(const void *x, const Py_ssize_t *sizes, Py_ssize_t size);

// What torch needs to be asked for; set by `prepare`.
extern PyObject *is_negated, *is_grad_enabled, *functorch_level, *num_function_modes, *without_functions,
    *as_mask;

// The part of DLPack's exchange table that reads a tensor without making anything.
struct DLTensor {
    void *data;
    int32_t device_type, device_id, ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};

// Forget an error, if there is one; false for an interrupt or an exit, which is not ours to stop.
inline bool forget_error() {
    if (!PyErr_Occurred()) return true;
    if (!PyErr_ExceptionMatches(PyExc_Exception)) return false;
    PyErr_Clear();
    return true;
}

// A plain, contiguous float32 tensor with elements in host memory; false for all else, at most with
// an exception that is not ours to stop. A view may show the elements negated.
bool read(PyObject *tensor, DLTensor *out, Py_ssize_t *elements);

// The row of a tensor's numbers; the mask of dead units where it has one.
PyObject *row_of(Py_ssize_t elements, const double *numbers, int count, PyObject *dead);

// The row of a gradient; null where Python must look, and where an exception is set.
PyObject *gradient_row_of(PyObject *gradient, bool count_zeros);

// Add the classes of the hooks to the module; false with an exception set.
bool add_hooks(PyObject *module);

inline bool is_given(PyObject *held) { return held && held != Py_None; }

}  // namespace reading
