"""Every number of every caption, computed again from the parquet files with pandas and numpy."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from analyzer.reports.story import Story

LAST = 59
_NUMBER = re.compile(r"(?<![\w.])[−-]?\d[\d,]*(?:\.\d+)?(?:·10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?")
_RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


class Files:
    """The tables of a run, as they lie on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.layers = self.table("layers.parquet")
        self.has_joins = len(self.table("joins.parquet")) > 0

    def table(self, place: str) -> pd.DataFrame:
        path = self.folder / place
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        return pd.concat([pq.read_table(file).to_pandas() for file in files], ignore_index=True)

    def probe(self, name: str, step: int = LAST) -> pd.DataFrame:
        return self.table(f"probes/{name}/step-{step:012d}.parquet")

    def probe_notes(self, name: str, step: int = LAST) -> dict[str, Any]:
        file = self.folder / "probes" / name / f"step-{step:012d}.parquet"
        notes = pq.read_schema(file).metadata
        return {
            key.decode(): json.loads(text)
            for key, text in notes.items()
            if text.startswith((b"[", b"{"))
        }

    def norms(self) -> pd.DataFrame:
        """Output gradient norms ``[steps, layers]`` of layers with parameters, by depth."""
        rows = self.table("layer_stats")
        wide = rows.pivot(index="step", columns="layer", values="output_gradient_norm")
        owns = self.layers[self.layers["num_parameters"] > 0].sort_values("depth", kind="stable")
        return wide[owns["layer"]]

    def gain(self) -> tuple[float, float]:
        """Gain, and decades fitted from last to first layer, by the slopes of all pairs."""
        y = np.log(self.norms().loc[LAST].to_numpy())
        depth = self.layers.set_index("layer")["depth"][self.norms().columns].to_numpy(float)
        slopes = [
            (y[j] - y[i]) / (depth[j] - depth[i])
            for i in range(len(y))
            for j in range(i + 1, len(y))
            if depth[i] != depth[j]
        ]
        slope = float(np.median(slopes))
        fallen = slope * (depth.max() - depth.min()) / np.log(10)
        return float(np.exp(-slope)), abs(float(fallen))

    def steps(self, column: str) -> pd.Series:
        return self.table("steps").sort_values("step")[column].reset_index(drop=True)

    def shares(self, step: int) -> pd.Series:
        rows = self.table("splits")
        return rows[rows["step"] == step].sort_values("join")["shortcut_share"]


def flow(run: Files) -> list[float]:
    return list(run.gain())


def final_loss(run: Files) -> float:
    return float(run.steps("loss").iloc[-6:].mean())


def score(run: Files) -> list[float]:
    share = [100 * run.shares(LAST).median()] if run.has_joins else []
    return [final_loss(run), 60, LAST, *flow(run), *share]


def heatmap(run: Files) -> list[float]:
    return [float(np.log10(run.norms().max().max() / run.norms().min().min()))]


def series(run: Files) -> list[float]:
    stem = run.norms().iloc[:, 0]
    return [stem.loc[0], 0, stem.loc[LAST], LAST]


def strip(run: Files) -> list[float]:
    if not run.has_joins:
        return []
    share = 100 * run.shares(LAST)
    return [LAST, len(share), share.median(), share.min(), share.max()]


def splits(run: Files) -> list[float]:
    if not run.has_joins:
        return []
    return [100 * run.shares(0).median(), 0, 100 * run.shares(LAST).median(), LAST]


def paths(run: Files) -> list[float]:
    if not run.has_joins:
        return []
    rows = run.probe("paths")
    norm, length = rows["gradient_norm"], rows["length"]
    top = int(norm.idxmax())
    effective = (length * norm).sum() / norm.sum()
    counts = rows["num_paths"]
    most = [100 * norm[top] / norm.sum(), 100 * counts[top] / counts.sum()]
    return [LAST, counts.sum(), length.max(), effective, length[top], *most]


def lesions(run: Files) -> list[float]:
    if not run.has_joins:
        return []
    rows = run.probe("lesion")
    change = rows["loss_change"]
    return [LAST, len(change), change.median(), change.max(), rows["shortcut_loss_change"].median()]


def at_joins(run: Files, step: int) -> pd.DataFrame:
    rows = run.table("splits")
    return rows[rows["step"] == step].sort_values("join").reset_index(drop=True)


def stream(run: Files) -> list[float]:
    if not run.has_joins:
        return []
    rows = at_joins(run, LAST)
    whole = rows["join_output_norm"]
    written = rows["branch_output_norm"] / rows["shortcut_output_norm"]
    return [LAST, whole.iloc[0], whole.iloc[-1], written.median(), written.min()]


def stream_over_time(run: Files) -> list[float]:
    if not run.has_joins:
        return []
    first, last = (at_joins(run, step)["join_output_norm"].iloc[-1] for step in (0, LAST))
    return [first, 0, last, LAST]


def counterfactual(run: Files) -> list[float]:
    if not run.has_joins:
        return []
    rows = run.probe("counterfactual").sort_values("layer")
    chosen = [(1.0, False), (0.5, False), (0.0, False), (0.0, True)]
    norms = [
        rows[(rows["skip_scale"] == scale) & (rows["rescaled"] == rescaled)]["output_gradient_norm"]
        for scale, rescaled in chosen
    ]
    return [LAST, *(column.iloc[0] / column.iloc[-1] for column in norms)]


def jacobian(run: Files) -> list[float]:
    rows = run.probe("jacobian")
    values = rows[rows["name"] == "network"]["singular_value"]
    return [LAST, values.min(), values.max(), values.max() / values.min()]


def shattering(run: Files) -> list[float]:
    rows = run.probe("shattering").set_index("layer")["correlation"]
    return [LAST, rows[rows.index.min()], rows[rows.index.max()]]


def forward_correlation(run: Files) -> list[float]:
    rows = run.probe("forward_correlation").sort_values("layer")
    columns = ["correlation", "correlation_low", "correlation_high"]
    return [LAST, *rows[columns].iloc[0], *rows[columns].iloc[-1]]


def last_stats(run: Files) -> pd.DataFrame:
    rows = run.table("layer_stats")
    return rows[rows["step"] == LAST].set_index("layer").join(run.layers.set_index("layer"))


def activations(run: Files) -> list[float]:
    rows = last_stats(run).sort_values("depth")["activation_std"]
    return [LAST, rows.iloc[0], rows.iloc[-1]]


def dead(run: Files) -> list[float]:
    rows = last_stats(run)
    counts = rows["activation_num_dead"]
    width = rows["output_shape"].map(lambda shape: shape[-1])
    worst = counts.idxmax()
    share = 100 * counts[worst] / width[worst]
    return [LAST, counts.sum(), (counts > 0).sum(), len(counts), counts[worst], share]


def updates(run: Files) -> list[float]:
    rows = run.table("parameter_stats")
    rows = rows[rows["step"] == LAST]
    ratio = rows["update_norm"].astype(float) / rows["norm"].astype(float)
    return [LAST, ratio.median(), ratio.min(), ratio.max()]


def loss(run: Files) -> list[float]:
    return [run.steps("loss").iloc[0], 0, final_loss(run), 60]


def learning_rate(run: Files) -> list[float]:
    rate = run.steps("learning_rate")
    return [rate.iloc[0], 0, rate.iloc[-1], LAST]


def gradient_norm(run: Files) -> list[float]:
    clipped = 100 * (run.steps("clip_factor") < 1).mean()
    return [run.steps("gradient_norm").median(), clipped, 60]


def sharpness(run: Files) -> list[float]:
    row = run.probe("sharpness").iloc[-1]
    # Of clipped steps the threshold is another one.
    late = run.steps("clip_factor").iloc[-20:]
    clipped = [100 * (late < 1).mean()] if (late < 1).mean() > 0.1 else []
    return [
        row["sharpness"],
        LAST,
        row["sharpness"] / row["threshold"],
        row["threshold"],
        *clipped,
    ]


def logged(run: Files) -> list[float]:
    return [run.steps(name).dropna().iloc[-1] for name in ("accuracy", "val/accuracy")]


def noise(run: Files) -> list[float]:
    first, last = (run.probe("noise", step)["gradient_noise_scale"][0] for step in (0, LAST))
    return [first, 0, last, LAST]


def landscape(run: Files) -> list[float]:
    rows = run.probe("landscape")
    center = rows[(rows["alpha"] == 0) & (rows["beta"] == 0)]["loss"].item()
    border = rows[rows[["alpha", "beta"]].abs().max(axis=1) == 1]["loss"].max()
    return [LAST, center, border, 1]


def trajectory(run: Files) -> list[float]:
    notes = run.probe_notes("landscape")
    path, residuals = notes["trajectory"], notes["trajectory_residuals"]
    explained, worst = sum(notes["variance_explained"]), int(np.argmax(residuals))
    return [LAST, len(path), path[0][0], 100 * explained, 100 * residuals[worst], path[worst][0]]


def attribution(run: Files) -> list[float]:
    last, first = (100 * run.probe("attribution", step)["share"].max() for step in (LAST, 0))
    return [LAST, last, first, 0]


def depth_profile(run: Files) -> list[float]:
    return [LAST, *flow(run)]


EACH_RUN: dict[str, Callable[[Files], list[float]]] = {
    "overview": score,
    "gradient_heatmap": heatmap,
    "depth_profile": depth_profile,
    "layer_series": series,
    "profile_overlay": depth_profile,
    "shortcut_strip": strip,
    "splits_over_time": splits,
    "path_spectrum": paths,
    "lesion": lesions,
    "residual_stream": stream,
    "stream_over_time": stream_over_time,
    "counterfactual": counterfactual,
    "jacobian": jacobian,
    "shattering": shattering,
    "forward_correlation": forward_correlation,
    "activation_profile": activations,
    "dead_units": dead,
    "update_ratio": updates,
    "loss": loss,
    "sharpness": sharpness,
    "learning_rate": learning_rate,
    "gradient_norm": gradient_norm,
    "noise_scale": noise,
    "logged": logged,
    "landscape_contour": landscape,
    "landscape_surface": landscape,
    "trajectory": trajectory,
    "attribution_shares": attribution,
}


def difference(plain: Files, residual: Files) -> list[float]:
    """Where and by how much the runs differ most; here that is the first layer."""
    ratio = residual.norms().iloc[:, 0] / plain.norms().iloc[:, 0]
    return [0, 0, 0, LAST, float(ratio.max())]


def numbers_in(caption: str, names: list[str]) -> list[str]:
    for name in sorted(names, key=len, reverse=True):
        caption = caption.replace(name, "")
    return _NUMBER.findall(caption)


def value_and_rounding(text: str) -> tuple[float, float]:
    """A written number, and half of a unit of its last digit."""
    digits, _, power = text.replace("−", "-").replace(",", "").partition("·10")
    scale = 10.0 ** int(power.translate(_RAISED) or 0)
    decimals = len(digits.partition(".")[2])
    return float(digits) * scale, 0.5 * 10.0**-decimals * scale


@pytest.mark.parametrize("key", [*EACH_RUN, "heatmap_difference"])
def test_the_numbers_of_a_caption_are_those_of_the_files(
    key: str, story: Story, folders: tuple[Path, Path]
) -> None:
    runs = [Files(folder) for folder in folders]
    (figure,) = [one for one in story.figures if one.key == key]
    names = [name for run in runs for name in run.layers["name"]]
    names += [name for run in runs for name in run.table("parameters.parquet")["name"]]
    names += list(runs[1].table("joins.parquet")["name"])
    written = numbers_in(figure.caption, names)
    if key == "heatmap_difference":
        expected = difference(*runs)
    else:
        expected = [number for run in runs for number in EACH_RUN[key](run)]
    assert len(written) == len(expected), (figure.caption, expected)
    for text, value in zip(written, expected, strict=True):
        shown, rounding = value_and_rounding(text)
        assert abs(shown - value) <= 1.001 * rounding + 1e-9 * abs(value), (text, value)


def test_the_captions_of_all_figures_are_checked_here(story: Story) -> None:
    assert {one.key for one in story.figures} == {*EACH_RUN, "heatmap_difference"}


@pytest.mark.parametrize(
    ("text", "value"), [("6.55", 6.55), ("−2.9·10⁻⁸", -2.9e-8), ("1,140", 1140.0)]
)
def test_written_numbers_are_read_back(text: str, value: float) -> None:
    assert value_and_rounding(text)[0] == pytest.approx(value, rel=1e-12)
