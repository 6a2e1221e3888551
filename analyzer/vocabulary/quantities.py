"""The quantities of the tables that have rows for steps, in the order of their columns."""

from functools import partial

from analyzer.vocabulary.quantity import Pooling, Quantity

__all__ = ["QUANTITIES"]

_NONFINITE = "Elements that are NaN or infinite."
_NORM, _MEAN, _SUM = (Pooling(rule, rule) for rule in ("norm", "mean", "sum"))
_activation = partial(
    Quantity, table="layer_stats", type="float32", unit="unit of y", moments="activation"
)
_LAYER = (
    _activation(
        "activation_norm",
        "activation norm ‖y‖₂",
        "L2 norm of the layer's output over all elements of the pooled step.",
        _NORM,
        type="float64",
        scale="log",
        is_norm=True,
    ),
    _activation("activation_mean", "activation mean", "Mean over all elements.", _MEAN),
    _activation(
        "activation_std",
        "activation std",
        "Population standard deviation over all elements.",
        Pooling("std", "std"),
        scale="log",
        needs=("activation_mean",),
    ),
    _activation("activation_min", "activation minimum", "Smallest element.", Pooling("min", "min")),
    _activation("activation_max", "activation maximum", "Largest element.", Pooling("max", "max")),
    _activation(
        "activation_zero_fraction",
        "activation zeros",
        "Exact zeros over elements.",
        _MEAN,
        unit="",
        degenerate="NaN for an empty tensor.",
        value=lambda x: x.zeros / x.elements,
    ),
    _activation(
        "activation_num_dead",
        "dead units",
        "Units (channels of a convolution, features of a linear layer) that are zero for every "
        "sample of the pooled step.",
        Pooling("dead", "min"),
        unit="units",
        degenerate="Null where there is no unit axis.",
        type="int32",
    ),
    _activation(
        "activation_num_nonfinite",
        "non-finite activations",
        _NONFINITE,
        _SUM,
        unit="elements",
        type="int64",
    ),
)

_output_gradient = partial(Quantity, table="layer_stats", type="float32", moments="output_gradient")
_output_slope = partial(
    _output_gradient, unit="loss / unit of y", scale="log", scales_with_loss=True
)
_OUTPUT_GRADIENT = (
    _output_slope(
        "output_gradient_norm",
        "output gradient norm ‖∂L/∂y‖₂",
        "L2 norm of the loss gradient with respect to the layer's output.",
        _NORM,
        degenerate="Null where no gradient arrived.",
        type="float64",
        is_norm=True,
    ),
    _output_slope(
        "output_gradient_mean_abs",
        "output gradient mean |∂L/∂y|",
        "Mean of the absolute elements.",
        _MEAN,
    ),
    _output_slope(
        "output_gradient_max_abs",
        "output gradient max |∂L/∂y|",
        "Largest absolute element.",
        Pooling("max", "max"),
    ),
    _output_gradient(
        "output_gradient_zero_fraction",
        "output gradient zeros",
        "Exact zeros over elements.",
        _MEAN,
        unit="",
        value=lambda x: x.zeros / x.elements,
    ),
    _output_gradient(
        "output_gradient_num_nonfinite",
        "non-finite output gradients",
        _NONFINITE,
        _SUM,
        unit="elements",
        type="int64",
    ),
)

# Gradients add up in place over micro-batches: a parameter is read once, when its optimizer steps.
# Replicas hold the same numbers; the mean says so even where they drift apart.
_SHARDED_NORM = Pooling("first", "mean", "norm")
_parameter = partial(Quantity, table="parameter_stats", scale="log")
_gradient = partial(_parameter, unit="loss / unit of θ", scales_with_loss=True, moments="gradient")
_PARAMETER = (
    _gradient(
        "gradient_norm",
        "parameter gradient norm ‖∂L/∂θ‖₂",
        "L2 norm of the gradient that the optimizer receives.",
        _SHARDED_NORM,
        degenerate="Null without a gradient.",
        type="float64",
        is_norm=True,
    ),
    _gradient(
        "gradient_mean_abs",
        "parameter gradient mean |∂L/∂θ|",
        "Mean of the absolute elements.",
        Pooling("first", "mean", "mean"),
        type="float32",
    ),
    _gradient(
        "gradient_max_abs",
        "parameter gradient max |∂L/∂θ|",
        "Largest absolute element.",
        Pooling("first", "mean", "max"),
        type="float32",
    ),
    _gradient(
        "gradient_num_nonfinite",
        "non-finite parameter gradients",
        _NONFINITE,
        Pooling("first", "max", "sum"),
        unit="elements",
        type="int64",
        scale="linear",
        scales_with_loss=False,
    ),
    _parameter(
        "norm",
        "parameter norm ‖θ‖₂",
        "L2 norm before the update.",
        _SHARDED_NORM,
        unit="unit of θ",
        type="float64",
        is_norm=True,
    ),
    _parameter(
        "update_norm",
        "update norm ‖Δθ‖₂",
        "L2 norm of the weights after the update minus before it.",
        _SHARDED_NORM,
        unit="unit of θ",
        degenerate="Null where not measured.",
        type="float64",
    ),
)

_split = partial(Quantity, table="splits", type="float64")
_split_norm = partial(_split, pooling=_NORM, scale="log", scales_with_loss=True)
_SPLIT_NORMS = ("shortcut_gradient_norm", "branch_gradient_norm")
_EQUATION = "He et al. 2016, equation 5"
_SPLIT = (
    _split_norm(
        "join_gradient_norm",
        "gradient norm at the join",
        "‖∂L/∂z‖₂ of the join's output z.",
        unit="loss / unit of z",
    ),
    _split_norm(
        "shortcut_gradient_norm",
        "gradient norm through the shortcut",
        "‖g_s‖₂, the part of ∂L/∂x at the fork x that arrives through the shortcut.",
        unit="loss / unit of x",
        source=_EQUATION,
    ),
    _split_norm(
        "branch_gradient_norm",
        "gradient norm through the branch",
        "‖g_b‖₂, the part of ∂L/∂x at the fork x that arrives through the residual branch.",
        unit="loss / unit of x",
        source=_EQUATION,
    ),
    _split_norm(
        "fork_gradient_norm",
        "gradient norm at the fork",
        "‖∂L/∂x‖₂ with all readers of x.",
        unit="loss / unit of x",
    ),
    _split(
        "cosine",
        "cosine of shortcut and branch gradient",
        "⟨g_s, g_b⟩ / (‖g_s‖ ‖g_b‖).",
        Pooling("cosine", "cosine"),
        degenerate="Null where one of the two is zero.",
        needs=_SPLIT_NORMS,
    ),
    _split(
        "shortcut_share",
        "shortcut share",
        "(ss + sb) / (ss + 2 sb + bb) from the dot products of g_s and g_b.",
        Pooling("share", "share"),
        degenerate="Exactly 1 at g_b = 0, above 1 where they cancel, null where g_s + g_b = 0.",
        needs=(*_SPLIT_NORMS, "cosine"),
    ),
)

_step = partial(Quantity, table="steps", type="float64")
_ONCE, _ADDED = Pooling("first", "mean"), Pooling("sum", "mean")
_STEP = (
    _step(
        "loss",
        "loss",
        "Sum of the roots of the step's backward passes, unscaled.",
        _ADDED,
        unit="loss",
        degenerate="Null where a root is not a scalar.",
        scales_with_loss=True,
    ),
    _step(
        "learning_rate",
        "learning rate",
        "Of the first group of the first optimizer that stepped; others are learning_rate_<i>.",
        _ONCE,
        scale="log",
    ),
    _step(
        "gradient_norm",
        "gradient norm ‖∂L/∂θ‖₂",
        "L2 norm of the gradient of all parameters, before clipping where clipping ran.",
        _ONCE,
        unit="loss / unit of θ",
        degenerate="Null without a gradient.",
        scale="log",
        scales_with_loss=True,
    ),
    _step(
        "clip_factor",
        "clip factor",
        "Global norm that the optimizer received over the one before clipping.",
        _ONCE,
        degenerate="1 when unclipped.",
    ),
    _step(
        "num_backward",
        "backward passes",
        "Backward passes of the step.",
        Pooling("sum", "first"),
        unit="passes",
        type="int32",
    ),
    _step(
        "skipped",
        "skipped",
        "Whether a gradient scaler skipped the update.",
        Pooling("first", "first"),
        type="bool",
    ),
    _step("seconds", "seconds", "Wall time of the step.", _ADDED, unit="s"),
)

QUANTITIES = (*_LAYER, *_OUTPUT_GRADIENT, *_PARAMETER, *_SPLIT, *_STEP)
