"""Panels of what every run holds: score, gradients, activations, updates, training."""

from analyzer.analysis.activations import activation_profiles, dead_unit_profiles
from analyzer.analysis.flow_grid import flow_grid, grid_difference, update_grid
from analyzer.analysis.overview import overview
from analyzer.analysis.profiles import layer_series, profile_curves, profile_overlay
from analyzer.analysis.training import (
    gradient_norm_curves,
    learning_rate_curves,
    loss_curves,
    noise_curves,
)
from analyzer.figures.activations import activation_figure, dead_unit_figure
from analyzer.figures.gradients import (
    difference_figure,
    difference_sketch,
    grid_figure,
    grid_sketch,
    profile_figure,
    profile_sketch,
    series_figure,
    series_sketch,
)
from analyzer.figures.panels import Panel
from analyzer.figures.score import score_figure, score_sketch
from analyzer.figures.training import step_curve_figure

__all__ = [
    "ACTIVATIONS_PANELS",
    "COMPARE_PANELS",
    "FLOW_PANELS",
    "SCORE_PANELS",
    "TRAINING_PANELS",
    "UPDATES_PANELS",
]

SCORE_PANELS = (
    Panel(
        "score",
        "score",
        "Score",
        "Depth runs along x in every row, so go straight down from a skip to what it does: the "
        "network with an arc per skip, the gradient along depth at the chosen step, the same over "
        "the whole training, and the loss.",
        ("output_gradient_norm",),
        overview,
        score_figure,
        score_sketch,
    ),
)

FLOW_PANELS = (
    Panel(
        "gradient_heatmap",
        "flow",
        "Layer × step",
        "Each row is a layer, input at the bottom; all runs share one color range. A steady fade "
        "toward the input is a vanishing gradient, a vertical edge is an event in the training.",
        ("output_gradient_norm",),
        flow_grid,
        grid_figure,
        grid_sketch,
    ),
    Panel(
        "depth_profile",
        "flow",
        "Depth profile",
        "One step along depth. A flat line passes the gradient on; a slope is a gain per layer, "
        "below 1 where it falls toward the input.",
        ("output_gradient_norm",),
        profile_curves,
        profile_figure,
        profile_sketch,
    ),
    Panel(
        "layer_series",
        "flow",
        "Layers over time",
        "Layers from input (dark) to output (bright). Lines that stay apart by decades are trained "
        "at different speeds by one learning rate; the band spans smallest to largest of a bin.",
        ("output_gradient_norm",),
        layer_series,
        series_figure,
        series_sketch,
    ),
)

COMPARE_PANELS = (
    Panel(
        "profile_overlay",
        "compare",
        "Profiles on a relative depth",
        "First layer at 0, last at 1, so that nets of any depth compare. Where the lines part is "
        "where the runs differ.",
        ("output_gradient_norm",),
        profile_overlay,
        profile_figure,
        profile_sketch,
    ),
    Panel(
        "heatmap_difference",
        "compare",
        "Difference",
        "The second run over the first: 10³ is a thousand times its value, white is no difference. "
        "Color toward the input only is an effect that builds up with depth.",
        ("output_gradient_norm",),
        grid_difference,
        difference_figure,
        difference_sketch,
    ),
)

ACTIVATIONS_PANELS = (
    Panel(
        "activation_profile",
        "activations",
        "Activations along depth",
        "Mean with one standard deviation around it. A spread that shrinks to nothing or grows "
        "without end along depth is an initialization that does not fit the net.",
        ("activation_mean", "activation_std"),
        activation_profiles,
        activation_figure,
    ),
    Panel(
        "dead_units",
        "activations",
        "Dead units",
        "Units that are zero for every sample of the step. They get no gradient and rarely come "
        "back.",
        ("activation_num_dead",),
        dead_unit_profiles,
        dead_unit_figure,
    ),
)

UPDATES_PANELS = (
    Panel(
        "update_ratio",
        "updates",
        "Update ratio",
        "The size of an update over the size of the weights. About 10⁻³ is usual when training "
        "from scratch; far less hardly learns, far more is unstable.",
        ("update_norm", "norm"),
        update_grid,
        grid_figure,
        grid_sketch,
    ),
)

TRAINING_PANELS = (
    Panel(
        "loss",
        "training",
        "Loss",
        "The loss that the training computed, per step; the band spans smallest to largest of a "
        "bin, crosses are NaN or infinite.",
        ("loss",),
        loss_curves,
        step_curve_figure,
    ),
    Panel(
        "learning_rate",
        "training",
        "Learning rate",
        "First group of the first optimizer. Compare its steps with edges in the other figures.",
        ("learning_rate",),
        learning_rate_curves,
        step_curve_figure,
    ),
    Panel(
        "gradient_norm",
        "training",
        "Global gradient norm",
        "Over all parameters; faint before clipping, strong as the optimizer received it. Lines "
        "that part are steps that were clipped.",
        ("gradient_norm",),
        gradient_norm_curves,
        step_curve_figure,
    ),
    Panel(
        "noise_scale",
        "training",
        "Gradient noise scale",
        "Roughly the batch size up to which larger batches pay off; it grows while the loss falls.",
        ("noise",),
        noise_curves,
        step_curve_figure,
    ),
)
