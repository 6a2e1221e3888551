"""See how gradients flow through a network while it trains, and why shortcut connections help.

A table of contents: a name is imported from its module when it is first used, so that importing
this package, and reading a run, never load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analyzer.errors import (
        AnalyzerError,
        NotRecordedError,
        RunExistsError,
        RunNotFoundError,
        SchemaError,
        ScriptError,
    )
    from analyzer.joins.find import find_joins
    from analyzer.joins.interception import skip_scale
    from analyzer.joins.search import Join
    from analyzer.live import (
        gradient_autocorrelation,
        gradient_correlation,
        gradient_noise_scale,
        gradient_splits,
        hessian_spectrum,
        jacobian_spectrum,
        layer_attribution,
        lesion_study,
        loss_surface,
        path_spectrum,
        sharpness,
    )
    from analyzer.opened import open_run
    from analyzer.probes.counterfactual import counterfactual
    from analyzer.probes.forward_correlation import forward_correlation
    from analyzer.probes.landscape import random_directions
    from analyzer.recording.recorder import Recorder

__version__ = "0.2.0"

__all__ = [  # noqa: RUF022 - grouped for readers
    # recording
    "Recorder",
    # reading a run
    "open_run",
    # on a live model
    "Join",
    "find_joins",
    "skip_scale",
    "gradient_correlation",
    "gradient_autocorrelation",
    "gradient_splits",
    "layer_attribution",
    "gradient_noise_scale",
    "hessian_spectrum",
    "sharpness",
    "path_spectrum",
    "jacobian_spectrum",
    "lesion_study",
    "counterfactual",
    "forward_correlation",
    "loss_surface",
    "random_directions",
    # errors
    "AnalyzerError",
    "NotRecordedError",
    "RunExistsError",
    "RunNotFoundError",
    "SchemaError",
    "ScriptError",
    # about
    "__version__",
]

_HOMES = {
    "Recorder": "analyzer.recording.recorder",
    "open_run": "analyzer.opened",
    "Join": "analyzer.joins.search",
    "find_joins": "analyzer.joins.find",
    "skip_scale": "analyzer.joins.interception",
    "gradient_correlation": "analyzer.live",
    "gradient_autocorrelation": "analyzer.live",
    "gradient_splits": "analyzer.live",
    "layer_attribution": "analyzer.live",
    "gradient_noise_scale": "analyzer.live",
    "hessian_spectrum": "analyzer.live",
    "sharpness": "analyzer.live",
    "path_spectrum": "analyzer.live",
    "jacobian_spectrum": "analyzer.live",
    "lesion_study": "analyzer.live",
    "loss_surface": "analyzer.live",
    "counterfactual": "analyzer.probes.counterfactual",
    "forward_correlation": "analyzer.probes.forward_correlation",
    "random_directions": "analyzer.probes.landscape",
    "AnalyzerError": "analyzer.errors",
    "NotRecordedError": "analyzer.errors",
    "RunExistsError": "analyzer.errors",
    "RunNotFoundError": "analyzer.errors",
    "SchemaError": "analyzer.errors",
    "ScriptError": "analyzer.errors",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'analyzer' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
