"""The figures of the lesson: for each setting of its controls what is drawn, with a sentence."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import pandas as pd

from analyzer.analysis.numerals import number, percent
from analyzer.lesson import tables
from analyzer.lesson.scene import (
    Control,
    Scene,
    State,
    Trace,
    axes,
    bars,
    beside_loss,
    control,
    line,
)
from analyzer.lesson.tables import CHAINS, NETS, PLAIN, RESIDUAL, SOURCE, at, table

__all__ = ["SCENES"]

DEPTH = "depth (layers, ReLUs, sums)"


def _degradation() -> Scene:
    rows = table("degradation")
    mean = rows.groupby(["net", "depth"])["final_loss"].mean()
    depths, seeds = sorted(int(depth) for depth in rows["depth"].unique()), rows["seed"].nunique()

    def traces(net: str) -> tuple[Trace, ...]:
        points = rows[rows["net"] == net]
        one = {"mode": "markers", "showlegend": False, "opacity": 0.6}
        said = f"{net}, mean of {seeds} starts"
        return (
            line(depths, [mean[net, d] for d in depths], said, f"@{net}"),
            line(points["depth"], points["final_loss"], f"{net}, one start", f"@{net}", **one),
        )

    def text(net: str) -> str:
        said = ", ".join(f"{number(mean[net, depth])} at {depth}" for depth in depths)
        return f"{net.capitalize()}: final training loss {said} layers."

    states = {net: State(traces(net), text(net)) for net in NETS}
    both = State(
        traces(PLAIN) + traces(RESIDUAL),
        f"At {depths[-1]} layers the loss is {number(mean[PLAIN, depths[-1]])} without "
        f"shortcuts and {number(mean[RESIDUAL, depths[-1]])} with them.",
    )
    return Scene(
        "Final training loss against the number of layers, plain and residual",
        (control("nets", "networks", [*NETS, "both"], start=2, is_slider=False),),
        states | {"both": both},
        axes("layers", "final training loss", low=0, high=rows["final_loss"].max() * 1.1),
        f"{CHAINS} {seeds} random starts (seeds); the final loss is the mean over the last tenth "
        "of the steps.",
    )


def _product() -> Scene:
    rows = table("factors")
    depths = sorted(int(depth) for depth in rows["depth"].unique())
    scales = sorted(float(scale) for scale in rows["scale"].unique())
    states = {}
    for net, depth, scale in product(NETS, depths, scales):
        norms = rows[(rows["net"] == net) & (rows["depth"] == depth) & (rows["scale"] == scale)]
        ratios = norms.sort_values("layer")["ratio"].tolist()
        layers = list(range(1, depth + 1))
        drawn = [line(layers, ratios, f"{net}, measured", f"@{net}")]
        gain = ratios[0] ** (1 / (depth - 1))
        said = (
            f"The first of {depth} layers receives {number(ratios[0])} times the last one's "
            f"gradient: a factor of {number(gain)} in each layer."
        )
        if net == PLAIN:
            factors = [scale ** (depth - layer) for layer in layers]
            faint = {"mode": "lines", "line": {"dash": "dot"}}
            drawn.append(line(layers, factors, "scale, once in each layer", "@text", **faint))
            said += f" {number(scale)} multiplied {depth - 1} times is {number(factors[0])}."
        states[f"{net}|{depth}|{scale}"] = State(tuple(drawn), said)
    titles = "layer, from input to output", "gradient, relative to the last layer"
    return Scene(
        "Gradient of each layer, divided by that of the last layer, in untrained networks",
        (
            control("net", "shortcuts", NETS, shown=["off", "on"], is_slider=False),
            control("depth", "layers", depths, start=3),
            control("scale", "weight scale", scales, start=2),
        ),
        states,
        axes(*titles, log=True, low=-29, high=10),
        "Computed: untrained networks of linear layers and ReLUs, 64 features, He's weights times "
        "the scale, one seed, one batch of 64 digits, without and with + x around each layer.",
    )


def _steps() -> list[int]:
    return sorted(int(step) for step in table("splits")["step"].unique())


def _blocks(step: int) -> pd.DataFrame:
    rows = table("splits")
    return rows[rows["step"] == step].sort_values("join")


def _step_control() -> Control:
    return control("step", "step of the training", _steps())


def _forward() -> Scene:
    states = {}
    for step in _steps():
        rows = _blocks(step)
        blocks = [int(join) + 1 for join in rows["join"]]
        ratio = rows["branch_output_norm"] / rows["shortcut_output_norm"]
        states[str(step)] = State(
            (
                bars(blocks, rows["shortcut_output_norm"], "x, passed on", "@residual"),
                bars(blocks, rows["branch_output_norm"], "f(x), added", "@branch"),
            ),
            f"Step {step}: what a block adds is between {percent(ratio.min())} and "
            f"{percent(ratio.max())} of what it passes on.",
        )
    top = table("splits")[["shortcut_output_norm", "branch_output_norm"]].max().max()
    return Scene(
        "Norm of what each block passes on and of what it adds, in the residual network",
        (_step_control(),),
        states,
        axes("block, from input to output", "norm", low=0, high=1.05 * top) | {"barmode": "group"},
    )


def _backward() -> Scene:
    states = {}
    for step in _steps():
        rows = _blocks(step).set_index("join")
        blocks = [int(join) + 1 for join in rows.index]
        parts = rows[["shortcut_gradient_norm", "branch_gradient_norm"]]
        # The gradients of steps differ by a factor of ten and more.
        own = axes("block, from input to output", "gradient norm", high=1.05 * parts.max().max())
        arcs = [round(float(share), 3) for share in rows["shortcut_share"]]
        for block in blocks:
            row = rows.loc[block - 1].to_dict()
            shown = {
                part: number(row[f"{part}_gradient_norm"])
                for part in ("shortcut", "branch", "fork")
            }
            look = {"opacity": [1.0 if one == block else 0.45 for one in blocks]}
            drawn = [
                bars(blocks, rows[f"{part}_gradient_norm"], name, color, marker=look)
                for part, name, color in (
                    ("shortcut", "through the shortcut (the + 1)", "@residual"),
                    ("branch", "through the branch", "@branch"),
                )
            ]
            states[f"{step}|{block}"] = State(
                tuple(drawn),
                f"Block {block} at step {step}: {shown['shortcut']} arrives through the shortcut "
                f"and {shown['branch']} through the branch (cosine {number(row['cosine'])}); "
                f"their sum is {shown['fork']}. The shortcut's share of it is "
                f"{percent(row['shortcut_share'])}.",
                {**shown, "block": str(block), "arcs": arcs},
                own | {"barmode": "group"},
            )
    count = table("splits")["join"].nunique()
    return Scene(
        "Gradient that arrives at each block's input through its shortcut and through its branch",
        (_step_control(), control("block", "block", range(1, count + 1))),
        states,
        {},
    )


def _paths() -> Scene:
    rows = table("paths")
    steps = sorted(int(step) for step in rows["step"].unique())
    states = {}
    for step in steps:
        found = rows[rows["step"] == step].sort_values("length")
        lengths, total = found["length"].tolist(), found["num_paths"].sum()
        of_norms = found["gradient_norm"] / found["gradient_norm"].sum()
        short = found["length"] <= 3
        states[str(step)] = State(
            (
                bars(lengths, found["num_paths"] / total, "share of all paths", "@faint"),
                bars(lengths, of_norms, "share of the gradient norms", "@residual"),
            ),
            f"{_when(step, steps)}: paths through at most 3 of the {lengths[-1]} branches are "
            f"{percent(found['num_paths'][short].sum() / total)} of all {total:,.0f} paths and "
            f"have {percent(tables.short_part(step))} of the gradient norms; the effective length "
            f"is {number(tables.effective_length(step))}.",
        )
    return Scene(
        "How many paths have each length, and how much gradient they carry",
        (_weights_control(steps),),
        states,
        axes("length: branches that a path crosses", "share", low=0, high=1) | {"barmode": "group"},
    )


def _weights_control(steps: Sequence[int]) -> Control:
    shown = ["before training", "after training"]
    return control("step", "weights", steps, shown=shown, is_slider=False)


def _when(step: int, steps: Sequence[int]) -> str:
    return "Before training" if step == min(steps) else f"After {step} steps"


def _decades(norms: "pd.Series[float]") -> tuple[float, float]:
    """The logarithms between which an axis shows all positive values."""
    return math.floor(math.log10(norms[norms > 0].min())), math.log10(norms.max()) + 0.3


def _counterfactual() -> Scene:
    rows = table("counterfactual")
    rows = rows[~rows["rescaled"]]
    steps = sorted(int(step) for step in rows["step"].unique())
    scales = sorted((float(scale) for scale in rows["skip_scale"].unique()), reverse=True)
    colors = {1.0: "@residual", 0.5: "@half", 0.0: "@plain"}
    states = {}
    for step, chosen in product(steps, scales):
        drawn, fallen = [], math.nan
        for scale in scales:
            found = rows[(rows["step"] == step) & (rows["skip_scale"] == scale)]
            norms = found.groupby("depth")["output_gradient_norm"].max()
            is_chosen = scale == chosen
            look = {"opacity": 1.0 if is_chosen else 0.45}
            name = f"shortcuts times {scale:g}"
            drawn.append(line(norms.index, norms.tolist(), name, colors[scale], **look))
            if is_chosen:
                fallen = float(norms.iloc[0] / norms.iloc[-1])
        states[f"{step}|{chosen}"] = State(
            tuple(drawn),
            f"{_when(step, steps)}, with shortcuts times {chosen:g}: the first layer receives "
            f"{number(fallen)} times the last one's gradient.",
        )
    low, high = _decades(rows["output_gradient_norm"])
    cuts = [f"{scale:g}" for scale in scales]
    return Scene(
        "Gradient by depth of the same weights with every shortcut whole, halved and cut",
        (
            _weights_control(steps),
            control("scale", "shortcuts times", scales, shown=cuts, is_slider=False),
        ),
        states,
        axes(DEPTH, "‖∂L/∂y‖", log=True, low=low, high=high),
    )


def _twins() -> Scene:
    rows, losses = table("layers"), table("steps")
    steps = sorted(int(step) for step in rows["step"].unique())
    states = {}
    for step in steps:
        drawn = []
        for net in NETS:
            found = rows[(rows["net"] == net) & (rows["step"] == step)].sort_values("depth")
            drawn.append(line(found["depth"], found["output_gradient_norm"], net, f"@{net}"))
            loss = losses[losses["net"] == net]
            second = {"mode": "lines", "xaxis": "x2", "yaxis": "y2", "showlegend": False}
            drawn.append(line(loss["step"], loss["loss"], f"{net}, loss", f"@{net}", **second))
        mark: Trace = {"mode": "lines", "line": {"dash": "dot", "width": 1.5}, "xaxis": "x2"}
        mark |= {"yaxis": "y2", "showlegend": False}
        drawn.append(line([step, step], [0, losses["loss"].max()], "step", "@text", **mark))
        plain, residual = (tables.first_over_last("layers", net, step) for net in NETS)
        states[str(step)] = State(
            tuple(drawn),
            f"Step {step}: the first layer receives {number(plain)} times the last one's gradient "
            f"without shortcuts and {number(residual)} with them. The loss of this step's batch is "
            f"{number(at('steps', 'loss', net=PLAIN, step=step))} and "
            f"{number(at('steps', 'loss', net=RESIDUAL, step=step))}.",
        )
    low, high = _decades(rows["output_gradient_norm"])
    layout = beside_loss(axes(DEPTH, "‖∂L/∂y‖", log=True, low=low, high=high))
    return Scene(
        "Gradient by depth of both networks at a step, and their losses",
        (control("step", "step of the training", steps),),
        states,
        layout,
    )


def _landscape() -> Scene:
    rows = table("landscape")
    low, high = rows["loss"].min(), rows["loss"].clip(upper=10).max()
    states = {}
    for net in NETS:
        found = rows[rows["net"] == net]
        grid = found.pivot(index="beta", columns="alpha", values="loss")
        drawn: Trace = {
            "type": "contour",
            "x": grid.columns.tolist(),
            "y": grid.index.tolist(),
            "z": [[float(f"{value:.4g}") for value in row] for row in grid.to_numpy()],
            "colorscale": "Cividis",
            "contours": {"coloring": "heatmap"},
            "zmin": low,
            "zmax": high,
            "ncontours": 25,
            "colorbar": {"title": {"text": "loss"}},
        }
        center = at("landscape", "loss", net=net, alpha=0.0, beta=0.0)
        cross = {"symbol": "x", "size": 12, "color": "@text"}
        weights = line([0], [0], "the trained weights", "@text", mode="markers", marker=cross)
        states[net] = State(
            (drawn, weights),
            f"{net.capitalize()}: the loss is {number(center)} at the trained weights, and between "
            f"{number(found['loss'].min())} and {number(found['loss'].max())} in this plane; "
            f"colors end at {number(high)}.",
        )
    return Scene(
        "Training loss in a plane through the trained weights",
        (control("net", "network", NETS, is_slider=False),),
        states,
        axes("multiple of the first direction", "multiple of the second direction"),
        SOURCE + " The plane is spanned by two random directions, scaled filter by filter as in "
        "Li et al. (2018).",
    )


def _shapes() -> Scene:
    rows = table("shapes")
    colors = {"identity": "@residual", "projection": "@branch"}
    states = {}
    least = rows[rows["option"] == "A"]["num_parameters"].iloc[0]
    for option, found in rows.groupby("option"):
        drawn = tuple(
            bars(
                [k + 1 for k in kind.index - found.index[0]],
                kind["shortcut_share"],
                f"{name} shortcut",
                colors[str(name)],
                customdata=kind["shape"].tolist(),
                hovertemplate="block %{x}, output %{customdata}: share %{y:.0%}<extra></extra>",
            )
            for name, kind in found.groupby("shortcut")
        )
        added = (total := int(found["num_parameters"].iloc[0])) - int(least)
        counts = found["shortcut"].value_counts()
        states[str(option)] = State(
            drawn,
            f"Option {option}: {counts.get('identity', 0)} shortcuts without parameters and "
            f"{counts.get('projection', 0)} with a 1x1 convolution; {total:,} parameters, "
            + (f"{added:,} more than option A ({percent(added / least)})." if added else
               "none of them in a shortcut."),
        )  # fmt: skip
    return Scene(
        "Share of the gradient that arrives through each block's shortcut, by kind of shortcut",
        (control("option", "option", sorted(states), is_slider=False),),
        states,
        axes("block, from input to output", "shortcut's share of the gradient", low=0, high=1),
        "Recorded: the 20-layer network of He et al. (2015) with options A, B and C on the digits "
        "of scikit-learn, first step, seed 0.",
    )


def _others() -> Scene:
    rows, losses = table("others_layers"), table("others_steps")
    nets = list(dict.fromkeys(rows["net"]))
    colors = dict(zip(nets, ("@plain", "@residual", "@branch", "@half", "@other"), strict=True))
    states = {}
    for chosen in nets:
        drawn = []
        for net in nets:
            look = {"opacity": 1.0 if net == chosen else 0.45}
            found = rows[rows["net"] == net].sort_values("depth")
            color = colors[net]
            drawn.append(line(found["depth"], found["output_gradient_norm"], net, color, **look))
            loss = losses[losses["net"] == net]
            second = {"mode": "lines", "xaxis": "x2", "yaxis": "y2", "showlegend": False} | look
            drawn.append(line(loss["step"], loss["loss"], f"{net}, loss", color, **second))
        loss = losses[losses["net"] == chosen].sort_values("step")["loss"]
        states[chosen] = State(
            tuple(drawn),
            f"{chosen[0].upper()}{chosen[1:]}: at the first step the first layer receives "
            f"{number(tables.first_over_last('others_layers', chosen, 0))} times the last one's "
            f"gradient; the loss is {number(loss.iloc[0])} at the first step and "
            f"{number(tables.final_loss(chosen))} at the end.",
        )
    low, high = _decades(rows["output_gradient_norm"])
    layout = axes(DEPTH, "‖∂L/∂y‖ at the first step", log=True, low=low, high=high)
    layout = beside_loss(layout, {"type": "log", "dtick": 2, "exponentformat": "power"})
    return Scene(
        "Gradient by depth at the first step and loss of five networks of equal size",
        (control("net", "network", nets, is_slider=False),),
        states,
        layout,
        f"{CHAINS} The last of these depths, seed 0.",
    )


_MADE = (
    *(_degradation, _product, _forward, _backward, _paths),
    *(_counterfactual, _twins, _landscape, _shapes, _others),
)
SCENES: Mapping[str, Callable[[], Scene]] = {make.__name__[1:]: make for make in _MADE}
"""The figure of each step, in their order."""
