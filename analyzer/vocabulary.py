"""Every recorded quantity: its key, label, unit, definition, scale and source."""

from dataclasses import dataclass

__all__ = ["QUANTITIES", "Quantity", "quantity"]


@dataclass(frozen=True)
class Quantity:
    """One kind of number that a run can hold.

    Args:
        key: Its column name.
        label: What an axis shows.
        unit: Its unit; empty for a pure number.
        definition: One sentence that says what it is, degenerate cases included.
        scale: ``log`` or ``linear``, as it is best drawn.
        source: Where the definition comes from; empty for common knowledge.
    """

    key: str
    label: str
    unit: str
    definition: str
    scale: str = "linear"
    source: str = ""


_ACTIVATION = (
    Quantity(
        "activation_norm",
        "activation norm ‖y‖₂",
        "unit of y",
        "L2 norm of the layer's output over all elements of the pooled step.",
        "log",
    ),
    Quantity("activation_mean", "activation mean", "unit of y", "Mean over all elements."),
    Quantity(
        "activation_std",
        "activation std",
        "unit of y",
        "Population standard deviation over all elements.",
        "log",
    ),
    Quantity("activation_min", "activation minimum", "unit of y", "Smallest element."),
    Quantity("activation_max", "activation maximum", "unit of y", "Largest element."),
    Quantity(
        "activation_zero_fraction",
        "activation zeros",
        "",
        "Exact zeros over elements; NaN for an empty tensor.",
    ),
    Quantity(
        "activation_num_dead",
        "dead units",
        "units",
        "Units (channels of a convolution, features of a linear layer) that are zero for every "
        "sample of the pooled step; null where there is no unit axis.",
    ),
    Quantity(
        "activation_num_nonfinite",
        "non-finite activations",
        "elements",
        "Elements that are NaN or infinite.",
    ),
)

_OUTPUT_GRADIENT = (
    Quantity(
        "output_gradient_norm",
        "output gradient norm ‖∂L/∂y‖₂",
        "loss / unit of y",
        "L2 norm of the loss gradient with respect to the layer's output; null where no gradient "
        "arrived.",
        "log",
    ),
    Quantity(
        "output_gradient_mean_abs",
        "output gradient mean |∂L/∂y|",
        "loss / unit of y",
        "Mean of the absolute elements.",
        "log",
    ),
    Quantity(
        "output_gradient_max_abs",
        "output gradient max |∂L/∂y|",
        "loss / unit of y",
        "Largest absolute element.",
        "log",
    ),
    Quantity(
        "output_gradient_zero_fraction",
        "output gradient zeros",
        "",
        "Exact zeros over elements.",
    ),
    Quantity(
        "output_gradient_num_nonfinite",
        "non-finite output gradients",
        "elements",
        "Elements that are NaN or infinite.",
    ),
)

_PARAMETER = (
    Quantity(
        "gradient_norm",
        "parameter gradient norm ‖∂L/∂θ‖₂",
        "loss / unit of θ",
        "L2 norm of the gradient that the optimizer receives; null without a gradient. In the "
        "steps table: over all parameters, before clipping where clipping ran.",
        "log",
    ),
    Quantity(
        "gradient_mean_abs",
        "parameter gradient mean |∂L/∂θ|",
        "loss / unit of θ",
        "Mean of the absolute elements.",
        "log",
    ),
    Quantity(
        "gradient_max_abs",
        "parameter gradient max |∂L/∂θ|",
        "loss / unit of θ",
        "Largest absolute element.",
        "log",
    ),
    Quantity(
        "gradient_num_nonfinite",
        "non-finite parameter gradients",
        "elements",
        "Elements that are NaN or infinite.",
    ),
    Quantity("norm", "parameter norm ‖θ‖₂", "unit of θ", "L2 norm before the update.", "log"),
    Quantity(
        "update_norm",
        "update norm ‖Δθ‖₂",
        "unit of θ",
        "L2 norm of the weights after the update minus before it; null where not measured.",
        "log",
    ),
)

_SPLIT = (
    Quantity(
        "join_gradient_norm",
        "gradient norm at the join",
        "loss / unit of z",
        "‖∂L/∂z‖₂ of the join's output z.",
        "log",
    ),
    Quantity(
        "shortcut_gradient_norm",
        "gradient norm through the shortcut",
        "loss / unit of x",
        "‖g_s‖₂, the part of ∂L/∂x at the fork x that arrives through the shortcut.",
        "log",
        "He et al. 2016, equation 5",
    ),
    Quantity(
        "branch_gradient_norm",
        "gradient norm through the branch",
        "loss / unit of x",
        "‖g_b‖₂, the part of ∂L/∂x at the fork x that arrives through the residual branch.",
        "log",
        "He et al. 2016, equation 5",
    ),
    Quantity(
        "fork_gradient_norm",
        "gradient norm at the fork",
        "loss / unit of x",
        "‖∂L/∂x‖₂ with all readers of x.",
        "log",
    ),
    Quantity(
        "cosine",
        "cosine of shortcut and branch gradient",
        "",
        "⟨g_s, g_b⟩ / (‖g_s‖ ‖g_b‖).",
    ),
    Quantity(
        "shortcut_share",
        "shortcut share",
        "",
        "(ss + sb) / (ss + 2 sb + bb) from the dot products of g_s and g_b; exactly 1 at g_b = 0, "
        "above 1 where they cancel, null where g_s + g_b = 0.",
    ),
)

_STEP = (
    Quantity(
        "loss",
        "loss",
        "loss",
        "Sum of the roots of the step's backward passes, unscaled; null for a root that is no "
        "scalar.",
    ),
    Quantity(
        "learning_rate",
        "learning rate",
        "",
        "Of the first group of the first optimizer that stepped; others are learning_rate_<i>.",
        "log",
    ),
    Quantity(
        "clip_factor",
        "clip factor",
        "",
        "Global norm that the optimizer received over the one before clipping; 1 when unclipped.",
    ),
    Quantity("num_backward", "backward passes", "passes", "Backward passes of the step."),
    Quantity("skipped", "skipped", "", "Whether a gradient scaler skipped the update."),
    Quantity("seconds", "seconds", "s", "Wall time of the step."),
)

QUANTITIES = (*_ACTIVATION, *_OUTPUT_GRADIENT, *_PARAMETER, *_SPLIT, *_STEP)
_BY_KEY = {row.key: row for row in QUANTITIES}


def quantity(key: str) -> Quantity:
    """Return the quantity of a column.

    Raises:
        KeyError: If no quantity has this key.
    """
    return _BY_KEY[key]
