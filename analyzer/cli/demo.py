"""``analyzer demo``: plain and residual twins on embedded data, side by side."""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from analyzer.cli import RunsDir, main
from analyzer.errors import AnalyzerError
from analyzer.options import RecordOptions
from analyzer.vocabulary.probes import PROBE_NAMES

__all__ = ["demo", "record_pair"]

_GAP = 3


def demo(
    depth: Annotated[int, typer.Option("--depth", metavar="N", help="Layers of each net.")] = 28,
    norm: Annotated[
        str, typer.Option("--norm", metavar="none|batch", help="Normalization in each net.")
    ] = "none",
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="Updates of each net.")] = 400,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of nets and data.")] = 0,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe",
            metavar="NAME[:EVERY]",
            help="Probes of both nets; may be given several times. Default: all of them, at the "
            "first and the final weights.",
        ),
    ] = None,
    no_probes: Annotated[
        bool, typer.Option("--no-probes", help="Train without probes: some claims stay open.")
    ] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.")] = False,
    no_dashboard: Annotated[
        bool, typer.Option("--no-dashboard", help="Do not open the dashboard.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> int:
    """Train a plain net and its residual twin on the digits of scikit-learn, and explain them.

    Ends with the verdict and a report; on a terminal the dashboard then opens.

    Without normalization (the default) the gradient of the plain net really vanishes. With
    --norm batch --depth 56 the nets are those of He et al. 2015, where it does not.

    \b
    Example:
        analyzer demo
        analyzer demo --norm batch --depth 56 --steps 150
    """  # noqa: D301 -- click reads the control character
    from analyzer.cli.terminal import console

    if norm not in ("none", "batch"):
        raise AnalyzerError(f"--norm is {norm!r}; expected none or batch")
    plain, residual = record_pair(
        depth=depth,
        norm=norm,
        steps=steps,
        seed=seed,
        probes=() if no_probes else tuple(probe or PROBE_NAMES),
        runs_dir=runs_dir,
        quiet=quiet,
    )
    screen = console()
    for line in _side_by_side(plain, residual, screen.width):
        screen.print(line, markup=False, highlight=False, soft_wrap=True)
    if not no_report:
        _write_report(plain, residual)
    if sys.stdout.isatty() and not no_dashboard:
        return main(["dashboard", str(plain), str(residual)])
    return 0


def _write_report(plain: Path, residual: Path) -> None:
    """Write the report of both nets beside their runs, and say where it is."""
    from analyzer.reports.html import write_report
    from analyzer.reports.story import story_of

    target = plain.with_name(f"{plain.name.removesuffix('-plain')}-report.html")
    write_report(story_of([plain, residual]), target)
    typer.echo(f"Report:      {target}")


def _folders(runs_dir: Path) -> tuple[Path, Path]:
    """The next free pair ``demo-<k>-plain`` and ``demo-<k>-residual``, made at once."""
    for k in itertools.count():
        pair = runs_dir / f"demo-{k}-plain", runs_dir / f"demo-{k}-residual"
        if not any(path.exists() for path in pair):
            for path in pair:
                path.mkdir(parents=True)
            return pair
    raise AssertionError


def record_pair(
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
    from analyzer.cli.training import train_zoo

    names = (
        (f"zoo:simple{depth}-plain", f"zoo:simple{depth}")
        if norm == "none"
        else (f"zoo:plain{depth}", f"zoo:resnet{depth}")
    )
    folders = _folders(runs_dir)
    for name, folder in zip(names, folders, strict=True):
        options = RecordOptions(
            target=name,
            runs_dir=runs_dir,
            steps=steps,
            seed=seed,
            quiet=quiet,
            probe=tuple(probes),
            lr=0.02,
            batch_size=64 if norm == "none" else 128,
        )
        train_zoo(options, 1.0 if norm == "none" else None, folder)
    return folders


def _side_by_side(plain: Path, residual: Path, width: int) -> list[str]:
    """Return both depth profiles on one scale, and the verdict on what separates them."""
    from analyzer.analysis.gradient_flow import depth_profile
    from analyzer.analysis.training import run_training
    from analyzer.analysis.verdict import verdict
    from analyzer.cli.chart import shared_decades, side_by_side
    from analyzer.cli.judging import explain_text
    from analyzer.cli.run_text import profile_chart
    from analyzer.cli.terminal import number, signs
    from analyzer.storage.run import open_run

    runs = [open_run(plain), open_run(residual)]
    profiles = [depth_profile(run, int(run.layer_steps()[-1])) for run in runs]
    losses = [run_training(run).last_loss for run in runs]
    decades = shared_decades(*(profile.norms[profile.measured] for profile in profiles))
    is_narrow = width < 90
    room = width if is_narrow else (width - _GAP) // 2
    charts = [
        profile_chart(
            profile,
            width=min(room, 70),
            decades=decades,
            title=f"{run.name}: loss {number(loss)} after step {profile.step}",
        )
        for run, profile, loss in zip(runs, profiles, losses, strict=True)
    ]
    drawn = "\n\n".join(charts) if is_narrow else side_by_side(charts[0], charts[1], _GAP)
    return [
        "",
        f"output gradient norm {signs().norm} against depth, at the last recorded step",
        "",
        *drawn.splitlines(),
        "",
        *explain_text(verdict(*runs), width, queries=False),
        "",
        f"Look closer: analyzer explain {plain} {residual}",
        f"             analyzer show {plain}; analyzer show {residual}",
    ]
