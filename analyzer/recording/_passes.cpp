// One pass over the elements of a tensor in host memory, for all that its statistics need.
//
// Sums are kept in float64, where squares of float32 neither vanish nor overflow. A result is None where
// they might have, or where an element is not finite: then `numpy_statistics` decides.

#include "_scan.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__GNUC__) && defined(__x86_64__) && defined(__linux__)
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define HAS_X86
#else
#define FOR_EVERY_PROCESSOR
#endif
#define INLINE inline __attribute__((always_inline))

namespace reading {
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

// Lets other threads run during a pass that takes long.
template <Wanted wanted>
Totals scan_unlocked(const void *x, Py_ssize_t n, Py_ssize_t size) {
    PyThreadState *state = n > kReleaseLock ? PyEval_SaveThread() : nullptr;
    const Totals t = size == 4 ? scan<wanted>(static_cast<const float *>(x), n)
                               : scan<wanted>(static_cast<const double *>(x), n);
    if (state) PyEval_RestoreThread(state);
    return t;
}

// The names are those of `Activation` and `Gradient` in `moments.py`, which checks them.
struct Activation {
    double norm, mean, std, min, max, zeros, num_nonfinite;
};

struct Gradient {
    double norm, mean_abs, max_abs, zeros, num_nonfinite;
};

static_assert(sizeof(Activation) <= kMostMoments * sizeof(double));

}  // namespace

const char *const activation_names[] = {"norm", "mean",  "std",           "min",
                                        "max",  "zeros", "num_nonfinite", nullptr};
const char *const gradient_names[] = {"norm", "mean_abs", "max_abs", "zeros", "num_nonfinite", nullptr};
const int num_activation = sizeof(Activation) / sizeof(double);
const int num_gradient = sizeof(Gradient) / sizeof(double);

int64_t activation_moments(const void *x, Py_ssize_t n, Py_ssize_t size, double *out) {
    const Totals t = scan_unlocked<kActivation>(x, n, size);
    const double square = t.squares / n, mean = t.sum / n;
    const double variance = square - mean * mean;
    if (!(t.squares >= kSmallest && t.squares <= kLargest && variance > kCancellation * square))
        return -1;
    Activation found;
    found.norm = std::sqrt(t.squares);
    found.mean = mean;
    found.std = std::sqrt(variance);
    found.min = t.low;
    found.max = t.high;
    found.zeros = double(t.zeros);
    found.num_nonfinite = 0;
    std::memcpy(out, &found, sizeof found);
    return t.zeros;
}

bool gradient_moments(const void *x, Py_ssize_t n, Py_ssize_t size, bool count_zeros, double *out) {
    const Totals t = count_zeros ? scan_unlocked<kGradientWithZeros>(x, n, size)
                                 : scan_unlocked<kGradient>(x, n, size);
    const bool is_zero = t.squares == 0 && t.high == 0;
    if (!is_zero && !(t.squares >= kSmallest && t.squares <= kLargest)) return false;
    Gradient found;
    found.norm = std::sqrt(t.squares);
    found.mean_abs = t.sum / n;
    found.max_abs = t.high;
    found.zeros = double(t.zeros);
    found.num_nonfinite = 0;
    std::memcpy(out, &found, sizeof found);
    return true;
}

double sum_of_squares(const void *x, Py_ssize_t n) { return scan_unlocked<kSquares>(x, n, 4).squares; }

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

}  // namespace reading
