"""Statistics of tensors in host memory: numbers at once, since nothing must be waited for.

One pass by compiled code where the package was built with a compiler, else several by numpy.
"""

try:
    from analyzer.recording.scan_statistics import activation_numbers, gradient_numbers, norm

    IS_COMPILED = True
except ImportError:
    from analyzer.recording.numpy_statistics import activation_numbers, gradient_numbers, norm

    IS_COMPILED = False

__all__ = ["IS_COMPILED", "activation_numbers", "gradient_numbers", "norm"]
