"""What is known of a quantity, and those of the tables that have rows for steps, by column."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

__all__ = ["QUANTITIES", "RULES", "Pooling", "Quantity"]

RULES = {
    "norm": "root of the sum of squares",
    "mean": "mean, weighted by the number of elements",
    "std": "root of the mean variance plus the variance of the means",
    "min": "smallest",
    "max": "largest",
    "sum": "sum",
    "dead": "dead where dead in all parts; over ranks the smallest count",
    "cosine": "from the summed dot products",
    "share": "from the summed dot products",
    "follows": "computed from the pooled quantities that it follows from",
    "first": "the first that is known",
}
"""How the values of parts become that of the whole; `analyzer.pooling` has the arithmetic."""

TYPES = ("bool", "int32", "int64", "float32", "float64", "string")


@dataclass(frozen=True)
class Pooling:
    """How the values of the parts of a step become one; each is a key of `RULES`.

    Args:
        batches: Over the micro-batches of a step.
        ranks: Over data-parallel ranks, each with an equal part of the batch.
        shards: Over ranks that hold a part of one tensor each; None where nothing is sharded.
    """

    batches: str
    ranks: str
    shards: str | None = None

    def __post_init__(self) -> None:
        for rule in (self.batches, self.ranks, self.shards):
            if rule is not None and rule not in RULES:
                raise ValueError(f"pooling rule is {rule!r}; expected one of {', '.join(RULES)}")


@dataclass(frozen=True)
class Quantity:
    """One kind of number that a run can hold.

    Args:
        key: Its column name.
        label: What an axis shows.
        definition: One sentence that says what it is.
        pooling: How the values of parts become that of the whole step.
        table: The table of a run folder that holds it.
        type: Type of its column, a word of Arrow.
        unit: Its unit; empty for a pure number.
        degenerate: When it is null, NaN, or at a limit; empty where nothing is to be said.
        source: Where the definition comes from; empty for common knowledge.
        scale: ``log`` or ``linear``, as it is best drawn.
        scales_with_loss: Whether twice the loss gives twice the value.
        is_norm: Whether ``--columns norms`` records it.
        moments: What it is computed from: the activation, the output gradient or the gradient of a
            parameter; empty where it is not computed from a tensor's moments.
        value: How it is computed from the moments: the name of one, or a function of all; empty
            for the moment that its key names.
        needs: Columns without which it cannot be pooled.
    """

    key: str
    label: str
    definition: str
    pooling: Pooling
    _: KW_ONLY
    table: str
    type: str
    unit: str = ""
    degenerate: str = ""
    source: str = ""
    scale: str = "linear"
    scales_with_loss: bool = False
    is_norm: bool = False
    moments: str = ""
    value: str | Callable[[Any], Any] = ""
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        place = f"quantity {self.table}/{self.key}"
        if not isinstance(self.pooling, Pooling):
            raise ValueError(f"{place} has no pooling rule: {self.pooling!r}")
        if self.type not in TYPES:
            raise ValueError(f"{place} has type {self.type!r}; expected one of {', '.join(TYPES)}")
        if self.moments and not self.value:
            object.__setattr__(self, "value", self.key.removeprefix(f"{self.moments}_"))
        if not (self.label and self.definition):
            raise ValueError(f"{place} has no label or no definition; expected both")

    @property
    def description(self) -> str:
        """Definition and degenerate cases."""
        return f"{self.definition} {self.degenerate}".strip()


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

_split, _NOT_SEEN = partial(Quantity, table="splits", type="float64"), "Null where not seen."
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

_output = partial(_split, pooling=_NORM, scale="log", unit="unit of z", degenerate=_NOT_SEEN)
_SPLIT_OUTPUTS = (
    _output("shortcut_output_norm", "shortcut ‖s‖₂", "The residual stream before the join."),
    _output("branch_output_norm", "branch ‖b‖₂", "What the branch writes at the join."),
    _output("join_output_norm", "sum ‖s + b‖₂", "The residual stream after the join."),
    _split(
        "output_cosine",
        "cosine of s and b",
        "⟨s, b⟩ / (‖s‖ ‖b‖).",
        Pooling("cosine", "cosine"),
        degenerate="Null where one of the two is zero, and in a concatenation.",
        needs=("shortcut_output_norm", "branch_output_norm"),
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
        "num_discarded",
        "discarded backward passes",
        "Backward passes whose gradients were cleared before any update received them; nothing "
        "else of the row counts them.",
        Pooling("sum", "first"),
        unit="passes",
        type="int32",
    ),
    _step(
        "grad_scale",
        "gradient scale",
        "Factor by which a gradient scaler multiplied the loss; everything recorded is divided by "
        "it.",
        _ONCE,
        degenerate="Null without a scaler.",
        scale="log",
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

QUANTITIES = (*_LAYER, *_OUTPUT_GRADIENT, *_PARAMETER, *_SPLIT, *_SPLIT_OUTPUTS, *_STEP)
