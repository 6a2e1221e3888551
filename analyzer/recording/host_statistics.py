"""Statistics of tensors in host memory: numbers at once, since nothing must be waited for.

One pass by compiled code where the package was built with a compiler, else several by numpy.
"""

from typing import TYPE_CHECKING

from analyzer.recording.numpy_statistics import none_dead

if TYPE_CHECKING:
    from analyzer.recording._scan import parameters, prepare
    from analyzer.recording.plain_hooks import Call, Gate, Layer
    from analyzer.recording.scan_statistics import activation_numbers, gradient_numbers, norm

    IS_COMPILED = True
else:
    try:
        from analyzer.recording._scan import Call, Gate, Layer, parameters, prepare
        from analyzer.recording.scan_statistics import activation_numbers, gradient_numbers, norm

        IS_COMPILED = True
    except ImportError:
        from analyzer.recording.numpy_statistics import activation_numbers, gradient_numbers, norm
        from analyzer.recording.plain_hooks import Call, Gate, Layer, parameters, prepare

        IS_COMPILED = False

__all__ = [
    "IS_COMPILED",
    "Call",
    "Gate",
    "Layer",
    "activation_numbers",
    "gradient_numbers",
    "none_dead",
    "norm",
    "parameters",
    "prepare",
]
