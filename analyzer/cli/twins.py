"""A plain net and its residual twin: recorded one after the other, shown side by side."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from analyzer.analysis.gradient_flow import depth_profile
from analyzer.analysis.training import run_training
from analyzer.analysis.verdict import verdict
from analyzer.cli.chart import depth_chart, shared_decades, side_by_side
from analyzer.cli.record_options import RecordOptions
from analyzer.cli.terminal import number, signs
from analyzer.cli.verdict_text import explain_text
from analyzer.storage.run import open_run

__all__ = ["PROBES", "record_twins", "side_by_side_text"]

PROBES = (
    "paths",
    "shattering",
    "jacobian",
    "lesion",
    "landscape",
    "curvature",
    "noise",
    "attribution",
)
"""Every probe: those that the verdict needs come first."""

_GAP = 3


def _folders(runs_dir: Path) -> tuple[Path, Path]:
    """The next free pair ``demo-<k>-plain`` and ``demo-<k>-residual``, made at once."""
    for k in itertools.count():
        pair = runs_dir / f"demo-{k}-plain", runs_dir / f"demo-{k}-residual"
        if not any(path.exists() for path in pair):
            for path in pair:
                path.mkdir(parents=True)
            return pair
    raise AssertionError


def record_twins(
    *,
    depth: int,
    norm: str,
    steps: int,
    seed: int,
    runs_dir: Path,
    quiet: bool,
    probes: Sequence[str] = (),
) -> tuple[Path, Path]:
    """Train and record both nets; return their run folders, plain first.

    Without norm: constant width 16, PyTorch's default initialization, SGD 0.02 with momentum 0.9,
    gradients clipped to norm 1, batches of 64. With batch norm: the CIFAR nets of He et al. 2015
    (depth 6n + 2), SGD 0.02 with momentum 0.9, batches of 128.

    Raises:
        AnalyzerError: If no such net exists.
    """
    from analyzer.cli.session import record_zoo

    names = (
        (f"zoo:simple{depth}-plain", f"zoo:simple{depth}")
        if norm == "none"
        else (f"zoo:plain{depth}", f"zoo:resnet{depth}")
    )
    folders = _folders(runs_dir)
    for name, folder in zip(names, folders, strict=True):
        options = RecordOptions(
            target=name,
            run=folder,
            runs_dir=runs_dir,
            steps=steps,
            seed=seed,
            quiet=quiet,
            probe=tuple(probes),
            lr=0.02,
            batch_size=64 if norm == "none" else 128,
        )
        record_zoo(options, max_norm=1.0 if norm == "none" else None)
    return folders


def side_by_side_text(plain: Path, residual: Path, width: int) -> list[str]:
    """Return both depth profiles on one scale, and the verdict on what separates them."""
    runs = [open_run(plain), open_run(residual)]
    profiles = [depth_profile(run, int(run.layer_steps()[-1])) for run in runs]
    losses = [run_training(run).last_loss for run in runs]
    decades = shared_decades(*(profile.norms[profile.measured] for profile in profiles))
    marks = signs()
    is_narrow = width < 90
    room = width if is_narrow else (width - _GAP) // 2
    charts = [
        depth_chart(
            profile.depths[profile.measured],
            profile.norms[profile.measured],
            width=min(room, 70),
            unicode=marks.unicode,
            decades=decades,
            title=f"{run.name}: loss {number(loss)} after step {profile.step}",
        )
        for run, profile, loss in zip(runs, profiles, losses, strict=True)
    ]
    drawn = "\n\n".join(charts) if is_narrow else side_by_side(charts[0], charts[1], _GAP)
    return [
        "",
        f"output gradient norm {marks.norm} against depth, at the last recorded step",
        "",
        *drawn.splitlines(),
        "",
        *explain_text(verdict(*runs), width, queries=False),
        "",
        f"Look closer: analyzer explain {plain} {residual}",
        f"             analyzer show {plain}; analyzer show {residual}",
    ]
