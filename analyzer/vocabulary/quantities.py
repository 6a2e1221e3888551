"""The quantities of the tables that have rows for steps, in the order of their columns."""

from functools import partial

from analyzer.vocabulary.quantity import Pooling, Quantity

__all__ = ["QUANTITIES"]

_GRADIENT = "loss / unit of y"
_NONFINITE = "Elements that are NaN or infinite."
_activation = partial(
    Quantity, table="layer_stats", type="float32", unit="unit of y", moments="activation"
)
_output_gradient = partial(
    Quantity, table="layer_stats", type="float32", unit=_GRADIENT, moments="output_gradient"
)

_LAYER = (
    _activation(
        key="activation_norm",
        label="activation norm ‖y‖₂",
        definition="L2 norm of the layer's output over all elements of the pooled step.",
        type="float64",
        pooling=Pooling("norm", "norm"),
        scale="log",
        is_norm=True,
        value="norm",
    ),
    _activation(
        key="activation_mean",
        label="activation mean",
        definition="Mean over all elements.",
        pooling=Pooling("mean", "mean"),
        value="mean",
    ),
    _activation(
        key="activation_std",
        label="activation std",
        definition="Population standard deviation over all elements.",
        pooling=Pooling("std", "std"),
        scale="log",
        value="std",
        needs=("activation_mean",),
    ),
    _activation(
        key="activation_min",
        label="activation minimum",
        definition="Smallest element.",
        pooling=Pooling("min", "min"),
        value="min",
    ),
    _activation(
        key="activation_max",
        label="activation maximum",
        definition="Largest element.",
        pooling=Pooling("max", "max"),
        value="max",
    ),
    _activation(
        key="activation_zero_fraction",
        label="activation zeros",
        unit="",
        definition="Exact zeros over elements.",
        degenerate="NaN for an empty tensor.",
        pooling=Pooling("mean", "mean"),
        value=lambda x: x.zeros / x.elements,
    ),
    _activation(
        key="activation_num_dead",
        label="dead units",
        unit="units",
        definition="Units (channels of a convolution, features of a linear layer) that are zero "
        "for every sample of the pooled step.",
        degenerate="Null where there is no unit axis.",
        type="int32",
        pooling=Pooling("dead", "min"),
        value="num_dead",
    ),
    _activation(
        key="activation_num_nonfinite",
        label="non-finite activations",
        unit="elements",
        definition=_NONFINITE,
        type="int64",
        pooling=Pooling("sum", "sum"),
        value="num_nonfinite",
    ),
    _output_gradient(
        key="output_gradient_norm",
        label="output gradient norm ‖∂L/∂y‖₂",
        definition="L2 norm of the loss gradient with respect to the layer's output.",
        degenerate="Null where no gradient arrived.",
        type="float64",
        pooling=Pooling("norm", "norm"),
        scale="log",
        scales_with_loss=True,
        is_norm=True,
        value="norm",
    ),
    _output_gradient(
        key="output_gradient_mean_abs",
        label="output gradient mean |∂L/∂y|",
        definition="Mean of the absolute elements.",
        pooling=Pooling("mean", "mean"),
        scale="log",
        scales_with_loss=True,
        value="mean_abs",
    ),
    _output_gradient(
        key="output_gradient_max_abs",
        label="output gradient max |∂L/∂y|",
        definition="Largest absolute element.",
        pooling=Pooling("max", "max"),
        scale="log",
        scales_with_loss=True,
        value="max_abs",
    ),
    _output_gradient(
        key="output_gradient_zero_fraction",
        label="output gradient zeros",
        unit="",
        definition="Exact zeros over elements.",
        pooling=Pooling("mean", "mean"),
        value=lambda x: x.zeros / x.elements,
    ),
    _output_gradient(
        key="output_gradient_num_nonfinite",
        label="non-finite output gradients",
        unit="elements",
        definition=_NONFINITE,
        type="int64",
        pooling=Pooling("sum", "sum"),
        value="num_nonfinite",
    ),
)

# Gradients add up in place over micro-batches: a parameter is read once, when its optimizer steps.
# Replicas hold the same numbers; the mean says so even where they drift apart.
_parameter = partial(Quantity, table="parameter_stats", type="float32", scale="log")
_gradient = partial(_parameter, unit="loss / unit of θ", scales_with_loss=True, moments="gradient")
_PARAMETER = (
    _gradient(
        key="gradient_norm",
        label="parameter gradient norm ‖∂L/∂θ‖₂",
        definition="L2 norm of the gradient that the optimizer receives.",
        degenerate="Null without a gradient.",
        type="float64",
        pooling=Pooling("first", "mean", "norm"),
        is_norm=True,
        value="norm",
    ),
    _gradient(
        key="gradient_mean_abs",
        label="parameter gradient mean |∂L/∂θ|",
        definition="Mean of the absolute elements.",
        pooling=Pooling("first", "mean", "mean"),
        value="mean_abs",
    ),
    _gradient(
        key="gradient_max_abs",
        label="parameter gradient max |∂L/∂θ|",
        definition="Largest absolute element.",
        pooling=Pooling("first", "mean", "max"),
        value="max_abs",
    ),
    _gradient(
        key="gradient_num_nonfinite",
        label="non-finite parameter gradients",
        unit="elements",
        definition=_NONFINITE,
        type="int64",
        pooling=Pooling("first", "max", "sum"),
        scale="linear",
        scales_with_loss=False,
        value="num_nonfinite",
    ),
    _parameter(
        key="norm",
        label="parameter norm ‖θ‖₂",
        unit="unit of θ",
        definition="L2 norm before the update.",
        type="float64",
        pooling=Pooling("first", "mean", "norm"),
        is_norm=True,
    ),
    _parameter(
        key="update_norm",
        label="update norm ‖Δθ‖₂",
        unit="unit of θ",
        definition="L2 norm of the weights after the update minus before it.",
        degenerate="Null where not measured.",
        type="float64",
        pooling=Pooling("first", "mean", "norm"),
    ),
)

_split_norm = partial(
    Quantity,
    table="splits",
    type="float64",
    unit="loss / unit of x",
    pooling=Pooling("norm", "norm"),
    scale="log",
    scales_with_loss=True,
)
_SPLIT_NORMS = ("shortcut_gradient_norm", "branch_gradient_norm")
_EQUATION = "He et al. 2016, equation 5"
_SPLIT = (
    _split_norm(
        key="join_gradient_norm",
        label="gradient norm at the join",
        unit="loss / unit of z",
        definition="‖∂L/∂z‖₂ of the join's output z.",
    ),
    _split_norm(
        key="shortcut_gradient_norm",
        label="gradient norm through the shortcut",
        definition="‖g_s‖₂, the part of ∂L/∂x at the fork x that arrives through the shortcut.",
        source=_EQUATION,
    ),
    _split_norm(
        key="branch_gradient_norm",
        label="gradient norm through the branch",
        definition="‖g_b‖₂, the part of ∂L/∂x at the fork x that arrives through the residual "
        "branch.",
        source=_EQUATION,
    ),
    _split_norm(
        key="fork_gradient_norm",
        label="gradient norm at the fork",
        definition="‖∂L/∂x‖₂ with all readers of x.",
    ),
    Quantity(
        key="cosine",
        label="cosine of shortcut and branch gradient",
        unit="",
        definition="⟨g_s, g_b⟩ / (‖g_s‖ ‖g_b‖).",
        degenerate="Null where one of the two is zero.",
        table="splits",
        type="float64",
        pooling=Pooling("cosine", "cosine"),
        needs=_SPLIT_NORMS,
    ),
    Quantity(
        key="shortcut_share",
        label="shortcut share",
        unit="",
        definition="(ss + sb) / (ss + 2 sb + bb) from the dot products of g_s and g_b.",
        degenerate="Exactly 1 at g_b = 0, above 1 where they cancel, null where g_s + g_b = 0.",
        table="splits",
        type="float64",
        pooling=Pooling("share", "share"),
        needs=(*_SPLIT_NORMS, "cosine"),
    ),
)

_step = partial(Quantity, table="steps", type="float64")
_STEP = (
    _step(
        key="loss",
        label="loss",
        unit="loss",
        definition="Sum of the roots of the step's backward passes, unscaled.",
        degenerate="Null where a root is not a scalar.",
        pooling=Pooling("sum", "mean"),
        scales_with_loss=True,
    ),
    _step(
        key="learning_rate",
        label="learning rate",
        unit="",
        definition="Of the first group of the first optimizer that stepped; others are "
        "learning_rate_<i>.",
        pooling=Pooling("first", "mean"),
        scale="log",
    ),
    _step(
        key="gradient_norm",
        label="gradient norm ‖∂L/∂θ‖₂",
        unit="loss / unit of θ",
        definition="L2 norm of the gradient of all parameters, before clipping where clipping ran.",
        degenerate="Null without a gradient.",
        pooling=Pooling("first", "mean"),
        scale="log",
        scales_with_loss=True,
    ),
    _step(
        key="clip_factor",
        label="clip factor",
        unit="",
        definition="Global norm that the optimizer received over the one before clipping.",
        degenerate="1 when unclipped.",
        pooling=Pooling("first", "mean"),
    ),
    _step(
        key="num_backward",
        label="backward passes",
        unit="passes",
        definition="Backward passes of the step.",
        type="int32",
        pooling=Pooling("sum", "first"),
    ),
    _step(
        key="skipped",
        label="skipped",
        unit="",
        definition="Whether a gradient scaler skipped the update.",
        type="bool",
        pooling=Pooling("first", "first"),
    ),
    _step(
        key="seconds",
        label="seconds",
        unit="s",
        definition="Wall time of the step.",
        pooling=Pooling("sum", "mean"),
    ),
)

QUANTITIES = (*_LAYER, *_PARAMETER, *_SPLIT, *_STEP)
