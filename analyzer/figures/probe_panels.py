"""Panels of skips and probes: splits, paths, lesions, spectra, landscape, attribution."""

from analyzer.analysis.activations import attribution_shares
from analyzer.analysis.block_probes import (
    block_spectra,
    join_lesions,
    path_lengths,
    shattering_curves,
)
from analyzer.analysis.loss_landscape import landscapes, trajectories
from analyzer.analysis.shortcuts import shortcut_strip, split_series
from analyzer.figures.activations import attribution_figure
from analyzer.figures.landscape import contour_figure, surface_figure, trajectory_figure
from analyzer.figures.panels import Panel
from analyzer.figures.skips import lesion_figure, path_figure, split_figure, strip_figure
from analyzer.figures.spectra import jacobian_figure, shattering_figure

__all__ = ["ATTRIBUTION_PANELS", "LANDSCAPE_PANELS", "SKIPS_PANELS"]

SKIPS_PANELS = (
    Panel(
        "skip_strip",
        "skips",
        "Skips",
        "One arc per join, from fork to join, wide and dark where the shortcut carries most of the "
        "gradient; dotted arcs have parameters on their shortcut. A band of boxes stands for many "
        "joins, each box for the median of neighbors.",
        ("joins",),
        shortcut_strip,
        strip_figure,
    ),
    Panel(
        "splits_over_time",
        "skips",
        "Splits over time",
        "Above 50 % more gradient arrives through the shortcut than through the branch; above "
        "100 % the two cancel in part.",
        ("shortcut_share",),
        split_series,
        split_figure,
    ),
    Panel(
        "path_spectrum",
        "skips",
        "Path lengths",
        "Bars: the share of the gradient on paths that cross so many branches; dotted: the share "
        "of the paths themselves. Bars far left of the dots say that short paths train the net.",
        ("paths",),
        path_lengths,
        path_figure,
    ),
    Panel(
        "lesion",
        "skips",
        "Lesions",
        "The change of the loss when one branch is taken out. Small bars say that no single branch "
        "matters; a tall one is a block that the net depends on.",
        ("lesion",),
        join_lesions,
        lesion_figure,
    ),
    Panel(
        "jacobian",
        "skips",
        "Jacobian spectrum",
        "Singular values of each block, output over input. At 1 a block passes gradients on "
        "unchanged; a wide spread is bad conditioning.",
        ("jacobian",),
        block_spectra,
        jacobian_figure,
    ),
    Panel(
        "shattering",
        "skips",
        "Shattering",
        "How much the gradients of different inputs agree. A fall toward the input is a shattered "
        "gradient, close to white noise; the gray curves are the theory for idealized nets.",
        ("shattering",),
        shattering_curves,
        shattering_figure,
    ),
)

LANDSCAPE_PANELS = (
    Panel(
        "landscape_contour",
        "landscape",
        "Loss landscape",
        "The loss around the trained weights, along two random directions; all runs share one "
        "color range. Wide, round contours are easy to train, jagged ones are not.",
        ("landscape",),
        landscapes,
        contour_figure,
    ),
    Panel(
        "landscape_surface",
        "landscape",
        "Loss surface",
        "The same losses as a surface, one height for all runs. Turn it; read numbers off the "
        "contours.",
        ("landscape",),
        landscapes,
        surface_figure,
    ),
    Panel(
        "trajectory",
        "landscape",
        "Trajectory",
        "The checkpoints of the training in the plane; the last one is at the center.",
        ("landscape",),
        trajectories,
        trajectory_figure,
    ),
)

ATTRIBUTION_PANELS = (
    Panel(
        "attribution_shares",
        "attribution",
        "Attribution by layer",
        "How much of the output goes through each layer, a line per checkpoint. Lines that move "
        "show where the net began to use a layer.",
        ("attribution",),
        attribution_shares,
        attribution_figure,
    ),
)
