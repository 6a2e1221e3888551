"""The numbers of claims that probes measured: of one run each, with the query that gives them."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.gradient_flow import relative_depth
from analyzer.analysis.per_run import not_recorded, probe_rows, probe_rows_at
from analyzer.analysis.training import CLIPPED, clipped_share, run_training
from analyzer.storage.reading import noted, noted_numbers
from analyzer.storage.run import Run

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Measured",
    "condition_number",
    "counterfactual",
    "edge_of_stability",
    "fallen_without_shortcuts",
    "forward_correlation",
    "hidden_words",
    "input_correlation",
    "lesion",
    "path_length",
    "sample_conditions",
]

# As analyzer.probes.jacobian names it, which the reading side does not import.
_NETWORK = "network"
_MOST_FLOAT32 = 1e6


@dataclass(frozen=True)
class Measured:
    """A number of one run, NaN where it is not one, and the query that gives it.

    Args:
        steps: At which it was measured: the first one is that of the figure.
        low: Lower end of its spread within the run; None where one run has none.
        high: Upper end of it.
        over: What the spread is over: ``steps``, ``samples`` or ``pairs of inputs``.
        count: How many of them.
        scale: What it is compared with, where that is a number of the run too.
        other: The same number of the network without its shortcuts, by a probe of this run.
        where: The layer or join that it is about.
        final: The step that stands for the final weights, one after the last; None not known.
    """

    value: float
    query: str
    steps: tuple[int, ...] = ()
    low: float | None = None
    high: float | None = None
    over: str = ""
    count: int = 1
    scale: float = 1.0
    other: float | None = None
    where: str = ""
    final: int | None = None

    @property
    def moments(self) -> tuple[str, ...]:
        """Each step in words."""
        said = (
            f"step {step}" if step != self.final else "the final weights" for step in self.steps
        )
        return tuple(said)


def path_length(run: Run) -> Measured:
    """``Σ k‖G_k‖ / Σ ‖G_k‖`` at the last probe; ``other`` is the length of the longest path.

    ``scale`` is the share of ``Σ‖G_k‖`` that paths of at most half of that length carry.
    """
    step, last = probe_rows_at(run, "paths", None)
    norms, lengths = last["gradient_norm"].to_numpy(np.float64), last["length"].to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float((lengths * norms).sum() / norms.sum())
        half = float(norms[lengths <= lengths.max() / 2].sum() / norms.sum())
    query = (
        f'RUN.probe("paths").query("step == {step}").pipe(lambda t: (t["length"].max(), '
        '(t["length"] * t["gradient_norm"]).sum() / t["gradient_norm"].sum()))'
    )
    return Measured(value, query, (step,), scale=half, other=float(lengths.max()))


def input_correlation(run: Run) -> Measured:
    """Correlation of the gradients of inputs at the shallowest probed layer, at the first step."""
    rows = _probed_layers(run, "shattering")
    depths = run.layers.set_index("layer")["depth"]
    owners = run.layers[run.layers["num_parameters"] > 0]["layer"]
    known = rows[rows["layer"].isin(owners)] if rows["layer"].isin(owners).any() else rows
    place = int(known["layer"].map(depths).fillna(np.inf).argmin())
    return _of_layer(known.iloc[place], "shattering")


def forward_correlation(run: Run) -> Measured:
    """Correlation of the activations of inputs at the last layer before the output, first step."""
    rows = _probed_layers(run, "forward_correlation")
    layers = run.layers.set_index("layer")
    rows = rows[rows["layer"].isin(layers.index)]
    depths = rows["layer"].map(layers["depth"]).to_numpy(float)
    # The output itself tells classes apart by its bias; what it is computed from has collapsed.
    inner: NDArray[np.int64] = np.flatnonzero(depths < depths.max(initial=-1))
    if not len(inner):
        raise not_recorded("layers of probe forward_correlation were", run, "record more layers")
    at = inner[int(np.argmax(depths[inner]))]
    return _of_layer(rows.iloc[at], "forward_correlation")


def _probed_layers(run: Run, probe: str) -> "pd.DataFrame":
    """What a probe by layer measured at its first step."""
    rows = probe_rows(run, probe).dropna(subset=["layer"])
    if not len(rows):
        raise not_recorded(f"layers of probe {probe} were", run, "record a model in eager mode")
    first: pd.DataFrame = rows[rows["step"] == rows["step"].min()]
    return first


def _of_layer(row: "pd.Series[Any]", probe: str) -> Measured:
    step, layer = int(row["step"]), int(row["layer"])
    query = (
        f'RUN.probe("{probe}").query("step == {step} and layer == {layer}")["correlation"].iloc[0]'
    )
    ends = [row.get(name) for name in ("correlation_low", "correlation_high")]
    low, high = (None if x is None or x != x else float(x) for x in ends)
    over = "pairs of inputs" if low is not None else ""
    value = float(row["correlation"])
    return Measured(value, query, (step,), low, high, over, where=str(row.get("name", "")))


def condition_number(run: Run) -> Measured:
    """Largest over smallest singular value of the whole network's Jacobian at the first probe.

    Over several samples the median, with the ends of a notch: ``1.57 · (Q3 − Q1) / √samples`` on a
    logarithmic scale (McGill et al. 1978). Samples without both values are left out; NaN where none
    has them. A run of an earlier version has one sample.
    """
    step, rows = probe_rows_at(run, "jacobian", 0)
    name = _whole(run, rows)
    each = sample_conditions(run, step, name)
    if each is None:
        values = rows[rows["name"] == name]["singular_value"]
        query = (
            f'RUN.probe("jacobian").pipe(lambda t: t[(t["step"] == {step}) & (t["name"] == '
            f'{name!r})])["singular_value"].pipe(lambda s: s.max() / s.min(skipna=False))'
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(np.float64(values.max()) / np.float64(values.min(skipna=False)))
        return Measured(value, query, (step,), over="samples")
    query = (
        f'__import__("pandas").Series(__import__("json").loads(RUN.probe_metadata("jacobian")'
        f'[{step}]["condition_numbers"])[{name!r}], dtype=float).median()'
    )
    known = each[~np.isnan(each)]
    if not len(known):
        return Measured(math.nan, query, (step,), over="samples")
    low, high = np.quantile(known, (0.25, 0.75), method="nearest")
    reach = (high / low) ** (1.57 / len(known) ** 0.5) if low > 0 and high < math.inf else 1.0
    middle = float(np.median(known))
    ends = middle / float(reach), middle * float(reach)
    hidden = hidden_words(run, middle)
    where = f"{hidden}," if hidden else ""
    return Measured(middle, query, (step,), *ends, "samples", len(known), where=where)


def sample_conditions(run: Run, step: int, name: str) -> NDArray[np.float64] | None:
    """Return the condition number of each sample, of a block or the network; None if not noted."""
    notes = run.probe_metadata("jacobian").get(step, {})
    found = noted(notes, "condition_numbers")
    values = noted_numbers(found.get(name) if isinstance(found, dict) else None)
    return values if values.ndim == 1 and len(values) else None


def hidden_words(run: Run, condition: float) -> str:
    """Return what to say of a condition number beyond what float32 can tell; empty for others."""
    # What is smaller than rounding makes of it is not told from zero.
    is_hidden = run.manifest.get("dtype") != "float64" and condition > _MOST_FLOAT32
    return " or more, hidden by rounding in float32" if is_hidden else ""


def _whole(run: Run, rows: "pd.DataFrame") -> str:
    """The name under which the probe wrote the whole network: the one that is no join's."""
    joins = set(run.joins["name"])
    names = [str(name) for name in dict.fromkeys(rows["name"])]
    whole = [name for name in names if name == _NETWORK or name not in joins]
    return (whole or names)[-1]


def lesion(run: Run) -> Measured:
    """Largest loss of accuracy without one branch, at the last probe; of the loss without one.

    ``scale`` is 0 where it is of accuracies, else the first loss.
    """
    step, rows = probe_rows_at(run, "lesion", None)
    found = noted_numbers(noted(run.probe_metadata("lesion").get(step, {}), "accuracy"))
    base = math.nan if found.ndim else float(found)
    names = run.joins.set_index("join")["name"]
    # A net that is not finite has accuracies, which say nothing.
    rows = rows[rows["loss"].notna()]
    here = f'RUN.probe("lesion").query("step == {step} and loss == loss")'
    if math.isnan(base) or rows["accuracy"].isna().all():
        change, scale, over = rows["loss_change"], abs(run_training(run).first_loss), "loss"
        query = f'{here}["loss_change"].max()'
    else:
        change, scale, over = base - rows["accuracy"], 0.0, "accuracy"
        query = f'{base!r} - {here}["accuracy"].min()'
    at = int(change.argmax()) if change.notna().any() else 0
    where = str(names.get(rows["join"].iloc[at], rows["join"].iloc[at])) if len(rows) else ""
    value = float(change.max())
    return Measured(value, query, (step,), over=over, count=len(rows), scale=scale, where=where)


def edge_of_stability(run: Run) -> Measured:
    """Sharpness over the one from which on a step is unstable, median over the last probes.

    The last third of them, at least two of three or more: at the edge the sharpness swings about
    its threshold. Of an optimizer with a preconditioner P both are those of ``P⁻¹H``. ``scale`` is
    the last threshold; the ends are the smallest and the largest ratio.
    """
    rows = probe_rows(run, "sharpness").sort_values("step")
    if clipped_share(run) > CLIPPED:
        remedy = "its gradients are clipped, so its steps are smaller than the learning rate says"
        raise not_recorded("the sharpness that a step bears was", run, remedy)
    for prefix in ("", "preconditioned_"):
        name, limit = f"{prefix}sharpness", f"{prefix}threshold"
        if not {name, limit} <= set(rows):
            continue  # of a foreign version
        ratios = (rows[name] / rows[limit]).astype(float)
        known = ratios[ratios.notna()]
        if not len(known):
            continue
        late = known.iloc[-(max(2, len(known) // 3) if len(known) > 2 else 1) :]
        query = (
            f'RUN.probe("sharpness").sort_values("step").eval("{name} / {limit}").dropna()'
            f".iloc[-{len(late)}:].median()"
        )
        steps = tuple(dict.fromkeys(int(rows["step"][k]) for k in (late.index[0], late.index[-1])))
        low, high = (float(late.min()), float(late.max())) if len(late) > 1 else (None, None)
        scale = float(rows[limit][late.index[-1]])
        value = float(late.median())
        return Measured(value, query, steps, low, high, "probes", len(late), scale)
    raise not_recorded(
        "the sharpness that a step bears was", run, "of SGD, Adam, AdamW and RMSprop one is known"
    )


def counterfactual(run: Run) -> Measured:
    """Decades that the gradient falls from the last layer to the first, as the network is.

    ``other`` are those without its shortcuts, ``scale`` those without them where its branches are
    rescaled as well. The ends are the shallowest and the deepest layer with parameters.
    """
    step, rows = probe_rows_at(run, "counterfactual", 0)
    rows, first, last = _between_ends(run, rows)
    fallen = [_fallen(rows, first, last, *kind) for kind in ((1, False), (0, False), (0, True))]
    query = (
        f'RUN.probe("counterfactual").query("step == {step} and rescaled == False")'
        '.pivot(index="layer", columns="skip_scale", values="output_gradient_norm")'
        f".pipe(lambda t: t.loc[[{last}]].div(t.loc[{first}])).T"
        f'.rename(columns={{{last}: "fall"}}).eval("log10(fall)").loc[[0, 1]].tolist()'
    )
    names = run.static_rows("layers").select(["layer", "name"]).to_pylist()
    where = next((str(row["name"]) for row in names if row["layer"] == first), "")
    return Measured(fallen[0], query, (step,), scale=fallen[2], other=fallen[1], where=where)


def fallen_without_shortcuts(run: Run, rows: "pd.DataFrame") -> float:
    """Return ``other`` of `counterfactual` from the rows of that probe at a step."""
    return _fallen(*_between_ends(run, rows), 0, False)


def _between_ends(run: Run, rows: "pd.DataFrame") -> "tuple[pd.DataFrame, int, int]":
    """Rows of layers with parameters, and the shallowest and the deepest of these layers."""
    layers = run.layers.set_index("layer")
    owners = layers[(layers["num_parameters"] > 0) & (layers["role"] != "shortcut")]
    rows = rows[rows["layer"].isin(owners.index)]
    if not len(rows):
        raise not_recorded("layers of probe counterfactual were", run, "record it in eager mode")
    places = relative_depth(rows["layer"].map(owners["depth"]))
    first, last = (int(rows["layer"].iloc[at]) for at in (places.argmin(), places.argmax()))
    return rows, first, last


def _fallen(rows: "pd.DataFrame", first: int, last: int, scale: float, rescaled: bool) -> float:
    chosen = rows[(rows["skip_scale"] == scale) & (rows["rescaled"].astype(bool) == rescaled)]
    norm = chosen.set_index("layer")["output_gradient_norm"]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.float64(norm.get(last, np.nan)) / np.float64(norm.get(first, np.nan))
        return float(np.log10(ratio))
