"""The probes: heavier measurements on the live model and one held batch."""

from dataclasses import dataclass

from analyzer.vocabulary.methods import Method
from analyzer.vocabulary.quantities import Pooling, Quantity

__all__ = ["PROBES", "PROBE_NAMES", "Probe", "ProbeOption", "ProbePlan"]


@dataclass(frozen=True)
class ProbeOption:
    """An option of ``analyzer probe`` that a probe takes, as a keyword of its function.

    It is ``--name`` on the command line, or ``flag`` where that is given.
    """

    name: str
    type: type
    metavar: str
    help: str
    flag: str = ""

    def __post_init__(self) -> None:
        if not self.flag:
            object.__setattr__(self, "flag", f"--{self.name.replace('_', '-')}")


@dataclass(frozen=True)
class ProbePlan:
    """When a probe is measured: before the first and every ``every``-th step, and at the end.

    Args:
        name: The probe.
        every: Interval in steps; None for the first weights and the final ones alone.
    """

    name: str
    every: int | None = None

    def is_due(self, step: int) -> bool:
        """Whether it is measured before a step; it is also measured after the last one."""
        return step == 0 if self.every is None else step % self.every == 0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One probe: everything that is known of it without running it.

    Args:
        name: What ``--probe`` takes.
        sentence: What it measures, in one sentence.
        columns: The columns of its table, ``probes/<name>``.
        function: Where it is measured, as ``module:function``; the function takes the held batch
            and returns a measurement. Empty for ``analyzer.probes.<name>:measure``.
        method: How a paper describes it.
        options: What ``analyzer probe`` passes on to it, each with the function's own default.

    Raises:
        ValueError: If the sentence or the columns are missing.
    """

    name: str
    sentence: str
    columns: tuple[Quantity, ...]
    function: str = ""
    method: Method | None = None
    options: tuple[ProbeOption, ...] = ()

    def __post_init__(self) -> None:
        if not self.function:
            object.__setattr__(self, "function", f"analyzer.probes.{self.name}:measure")
        if not (self.sentence and self.columns):
            raise ValueError(f"probe {self.name!r} has no sentence or no columns; expected both")

    @property
    def table(self) -> str:
        """Its folder in a run."""
        return f"probes/{self.name}"


# One rank measures a probe, on one batch.
_ONCE = Pooling("first", "first")


def _columns(probe: str, *rows: tuple[str, str, str, str]) -> tuple[Quantity, ...]:
    """The quantities of a probe from key, type, unit and definition of each."""
    return tuple(
        Quantity(
            key=key,
            label=key.replace("_", " "),
            unit=unit,
            definition=definition,
            table=f"probes/{probe}",
            type=type_,
            pooling=_ONCE,
        )
        for key, type_, unit, definition in rows
    )


_LAYER = ("layer", "int32", "", "Layer, in call order; row of layers.parquet.")
_LAYER_NAME = ("name", "string", "", "Name of the layer.")
_INTERVAL = (
    ("correlation_low", "float64", "1", "Lower end of its 95 % bootstrap interval over inputs."),
    ("correlation_high", "float64", "1", "Upper end of that interval."),
)

PROBES = (
    Probe(
        name="paths",
        sentence="How much gradient is carried by the paths that cross k residual branches.",
        method=Method(
            title="Path-length spectrum",
            formula="G_k ← G_k (through shortcut) + Jᵀ G_{k−1} (through branch)",
            text="A network of n branches is a sum over paths. G_k is the gradient that all paths "
            "carry which cross exactly k branches, computed exactly by one forward pass and one "
            "backward pass a length, n + 1 at most; nothing is sampled. The effective path length "
            "is Σ k ‖G_k‖ / Σ ‖G_k‖.",
            sources=("veit2016",),
        ),
        columns=_columns(
            "paths",
            ("length", "int32", "branches", "Branches that the paths cross."),
            (
                "num_paths",
                "float64",
                "paths",
                "Sets of branches, of this length, that a path crosses.",
            ),
            ("gradient_norm", "float64", "loss / unit of x", "Mean over samples of ‖G_k‖₂."),
            ("share", "float64", "1", "Mean over samples of ⟨G_k, G⟩ / ‖G‖²; adds to 1."),
        ),
    ),
    Probe(
        name="counterfactual",
        sentence="The gradient by layer with every shortcut scaled, at the same weights.",
        method=Method(
            title="Counterfactual gradient",
            formula="‖∂L/∂y‖ with z = α s + b at every join, α = 1, ½, 0",
            text="Gradient norms by layer of one network on one held batch, with every shortcut "
            "multiplied by 1, 0.5 and 0 at the same weights; and by 0 with each branch multiplied "
            "by the factor that gives its join the standard deviation that it has with the "
            "shortcut. Dropout is off; batch norms have the statistics of the batch in the "
            "network as it is, as constants. Four forward and backward passes, after one that "
            "takes these statistics. Nothing is trained again, so that the "
            "difference is the effect of the shortcuts alone.",
            sources=("he2016identity",),
        ),
        columns=_columns(
            "counterfactual",
            _LAYER,
            _LAYER_NAME,
            ("skip_scale", "float64", "1", "Factor of every shortcut; 1 is the network as it is."),
            ("rescaled", "bool", "", "Whether branches have the scale of the joins."),
            ("output_gradient_norm", "float64", "loss / unit of y", "‖∂L/∂y‖₂ at the layer."),
        ),
    ),
    Probe(
        name="landscape",
        sentence="The loss around the weights, over a line or a plane through them.",
        method=Method(
            title="Loss surface",
            formula="θ(α, β) = θ* + α d₁ + β d₂",
            text="Loss on a plane through the trained weights along two random Gaussian directions "
            "with filter normalization: each slice along dimension 0 of a tensor with more "
            "than one dimension has the norm of that slice of θ*; other tensors are not "
            "moved. The loss is taken by a forward pass at each evaluated point; in the fast mode "
            "the others are interpolated, and a spike narrower than the largest gap between "
            "evaluated points may be missed. A slice that is not convex shows that the loss is "
            "not; one that is proves nothing.",
            sources=("li2018",),
        ),
        options=(
            ProbeOption(
                "plane",
                str,
                "random|trajectory|N|N,M",
                "Random directions; the principal plane of the checkpoints; the line to the "
                "checkpoint of step N; the plane through those of steps N and M.",
            ),
            ProbeOption("grid", str, "N|NxM", "Points along the axes; Nx1 for a line."),
            ProbeOption(
                "range", str, "LOW:HIGH[,LOW:HIGH]", "Coordinates of both axes, or of each."
            ),
            ProbeOption("normalization", str, "filter|layer|none", "Of random directions."),
            ProbeOption("seed", int, "N", "Of random directions.", flag="--direction-seed"),
            ProbeOption(
                "mode", str, "fast|exact", "Evaluate as few points as the tolerance allows, or all."
            ),
            ProbeOption("tolerance", float, "T", "Of the fast mode, over the range of the loss."),
            ProbeOption(
                "batch_norm",
                str,
                "keep|recompute",
                "Running statistics: the model's, or estimated at every point.",
            ),
            ProbeOption(
                "weight_decay",
                float,
                "L",
                "Add L/2 times the squared norm of the weights to the loss.",
            ),
            ProbeOption("seconds", float, "S", "Evaluate no more after this time."),
        ),
        columns=_columns(
            "landscape",
            ("alpha", "float64", "", "Coordinate along the first direction."),
            ("beta", "float64", "", "Coordinate along the second direction."),
            ("loss", "float64", "loss", "Loss at this point; never repaired."),
            ("evaluated", "bool", "", "Whether the point was evaluated."),
        ),
    ),
    Probe(
        name="shattering",
        sentence="How alike the gradients of different inputs are, layer by layer.",
        method=Method(
            title="Gradient correlation",
            formula="mean over pairs of inputs of cos(∂Σf/∂a(x), ∂Σf/∂a(x′))",
            text="Uncentered cosine of the gradients that two inputs of a batch give at a layer, "
            "all from one backward pass. "
            "Reference curves, for independent half-active masks: plain 1/2^L; residual "
            "without norm (3/4)^L; residual with norm and branch scale β 1/(β√L). Real "
            "networks decay more slowly.",
            sources=("balduzzi2017",),
        ),
        columns=_columns(
            "shattering",
            _LAYER,
            _LAYER_NAME,
            ("correlation", "float64", "1", "Mean cosine over all pairs of inputs of the batch."),
            *_INTERVAL,
        ),
    ),
    Probe(
        name="forward_correlation",
        sentence="How alike the activations of different inputs are, layer by layer.",
        method=Method(
            title="Forward correlation",
            formula="mean over pairs of inputs of cos(a(x), a(x′))",
            text="Uncentered cosine of the activations of two inputs of a batch at a layer, from "
            "one forward pass. Near 1 deep inside, all inputs have collapsed to one direction. "
            "Reference curve, for an infinitely wide plain ReLU network: c ← (√(1 − c²) + "
            "c (π − arccos c)) / π at each layer.",
            sources=("schoenholz2017", "cho2009"),
        ),
        columns=_columns(
            "forward_correlation",
            _LAYER,
            _LAYER_NAME,
            ("correlation", "float64", "1", "Mean cosine over all pairs of inputs of the batch."),
            *_INTERVAL,
        ),
    ),
    Probe(
        name="jacobian",
        sentence="How much a block, or the whole network, stretches and squeezes its input.",
        method=Method(
            title="Jacobian spectrum",
            text="Singular values of ∂(block output)/∂(block input), for each block and for the "
            "whole network, at 16 samples (4 for blocks of more than 512 elements), each by "
            "itself: median and quartiles of each rank. All near 1 is dynamical isometry. From the "
            "whole matrix up to 1,024 rows, a backward pass each; else by Golub–Kahan–Lanczos of "
            "at most 120 products either way, without values that have not settled within 10⁻³ of "
            "the largest.",
            sources=("saxe2014", "pennington2017"),
        ),
        columns=_columns(
            "jacobian",
            ("name", "string", "", "Block, or the whole network."),
            ("rank_order", "int32", "", "Place of the singular value, from the largest."),
            (
                "singular_value",
                "float64",
                "unit of y / unit of x",
                "Of ∂(output)/∂(input), median over samples; NaN where it has not settled.",
            ),
            ("lower_quartile", "float64", "unit of y / unit of x", "Of that value over samples."),
            ("upper_quartile", "float64", "unit of y / unit of x", "Of that value over samples."),
        ),
    ),
    Probe(
        name="lesion",
        sentence="What the network loses when one residual branch, or one shortcut, is left out.",
        method=Method(
            title="Lesion study",
            text="Loss and accuracy of the trained network on one held batch with the branch of "
            "one join left out, one join at a time; then likewise with its shortcut left out: two "
            "forward passes a join, and one for each two blocks that trade places.",
            sources=("veit2016",),
        ),
        columns=_columns(
            "lesion",
            ("join", "int32", "", "Row of joins.parquet."),
            ("loss", "float64", "loss", "Loss without the branch of this join."),
            ("loss_change", "float64", "loss", "That loss minus the loss of the whole network."),
            ("accuracy", "float64", "1", "Accuracy without the branch."),
            ("shortcut_loss", "float64", "loss", "Loss without the shortcut of this join."),
            (
                "shortcut_loss_change",
                "float64",
                "loss",
                "That loss minus the loss of the whole network.",
            ),
            ("shortcut_accuracy", "float64", "1", "Accuracy without the shortcut."),
        ),
    ),
    Probe(
        name="sharpness",
        sentence="How sharp the loss is, against what the optimizer bears at its step size.",
        method=Method(
            title="Sharpness against the step",
            formula="λ₁(∇²L) against 2/η",
            text="Largest eigenvalue of the Hessian of the loss on one held batch, by Lanczos "
            "within 10⁻³, at most 24 products with the Hessian (96 where they are cheap), "
            "warm-started. A step of rate η is stable below 2/η (gradient descent), (2 + 2β)/η "
            "(heavy ball) and, for λ₁(P⁻¹∇²L) with Adam's preconditioner P, "
            "(2 + 2β₁)/((1 − β₁) η). Beside it the part of ‖∇L‖² that lies in the largest "
            "eigenvectors, as many as classes, where it is known within 0.1.",
            sources=("cohen2021", "cohen2022", "gurari2018"),
        ),
        columns=_columns(
            "sharpness",
            ("sharpness", "float64", "loss / (unit of θ)²", "Largest eigenvalue of the Hessian."),
            ("threshold", "float64", "loss / (unit of θ)²", "Where a step becomes unstable."),
            ("preconditioned_sharpness", "float64", "1 / unit of θ", "λ₁(P⁻¹∇²L), optimizer's P."),
            ("preconditioned_threshold", "float64", "1 / unit of θ", "That of instability."),
            ("gradient_share", "float64", "1", "Part of ‖∇L‖² in the largest eigenvectors."),
            (
                "num_eigenvectors",
                "int32",
                "",
                "How many these are: classes, at most 20; fewer where not all settled.",
            ),
        ),
    ),
    Probe(
        name="curvature",
        sentence="Sharpness, largest eigenvalues, spectral density and trace of the Hessian.",
        method=Method(
            title="Sharpness",
            formula="λ_max(∇²L)",
            text="Largest eigenvalue of the Hessian of the mean loss, by Lanczos with at most 100 "
            "products; density and trace from four vectors of random signs, 12 products each, with "
            "the trace's 95 % interval by Student's t.",
            sources=("cohen2021",),
        ),
        columns=_columns(
            "curvature",
            ("quantity", "string", "", "What was measured."),
            ("value", "float64", "loss / (unit of θ)²", "Its value."),
        ),
    ),
    Probe(
        name="attribution",
        sentence="How much of an output each layer and each side of a residual join carries.",
        method=Method(
            title="Attribution of layers",
            text="How much of the output for a target each layer accounts for, summed over its "
            "units; 20 forward and backward passes on the way from zero inputs, eight samples.",
            sources=("dhamdhere2019", "kokhlikyan2020"),
        ),
        columns=_columns(
            "attribution",
            _LAYER,
            _LAYER_NAME,
            ("method", "string", "", "Attribution method."),
            ("attribution", "float64", "unit of the target", "Attribution of the layer."),
            ("share", "float64", "1", "Attribution over the sum of all layers."),
        ),
    ),
    Probe(
        name="noise",
        sentence="How much of a batch's gradient is the sample, and how much is the loss.",
        method=Method(
            title="Gradient noise scale",
            formula="tr Σ / ‖G‖²",
            text="Batch size at which the noise of the gradient is as large as the gradient, "
            "estimated from two batch sizes, both terms averaged before dividing: from the passes "
            "that a training accumulates, else from 32 backward passes over pieces of a batch.",
            sources=("mccandlish2018",),
        ),
        columns=_columns(
            "noise",
            ("gradient_noise_scale", "float64", "samples", "tr Σ / ‖G‖²."),
            ("signal_norm", "float64", "loss / unit of θ", "‖G‖₂ of the true gradient, estimated."),
            (
                "noise_trace",
                "float64",
                "(loss / unit of θ)²",
                "tr Σ of one sample's gradient.",
            ),
        ),
    ),
)
PROBE_NAMES = tuple(probe.name for probe in PROBES)
