"""``analyzer demo``: plain and residual twins on embedded data, side by side."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from analyzer.cli import RunsDir

__all__ = ["demo"]


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
            "first and the last step.",
        ),
    ] = None,
    no_probes: Annotated[
        bool, typer.Option("--no-probes", help="Train without probes: some claims stay open.")
    ] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.")] = False,
    no_dashboard: Annotated[
        bool, typer.Option("--no-dashboard", help="End here, also on a terminal.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Train a plain net and its residual twin on the digits of scikit-learn, and explain them.

    Ends with the verdict and a report; on a terminal the dashboard opens then.

    Without normalization (the default) the gradient of the plain net truly vanishes. With
    --norm batch --depth 56 the nets are those of He et al. 2015, where it does not.

    \b
    Example:
        analyzer demo
        analyzer demo --norm batch --depth 56 --steps 150
    """  # noqa: D301 -- click reads the control character
    from analyzer.cli.terminal import console
    from analyzer.cli.twins import PROBES, record_twins, side_by_side_text
    from analyzer.errors import AnalyzerError

    if norm not in ("none", "batch"):
        raise AnalyzerError(f"--norm is {norm!r}; expected none or batch")
    plain, residual = record_twins(
        depth=depth,
        norm=norm,
        steps=steps,
        seed=seed,
        probes=() if no_probes else tuple(probe or PROBES),
        runs_dir=runs_dir,
        quiet=quiet,
    )
    screen = console()
    for line in side_by_side_text(plain, residual, screen.width):
        screen.print(line, markup=False, highlight=False, soft_wrap=True)
    if not no_report:
        _write_report(plain, residual)
    if sys.stdout.isatty() and not no_dashboard:
        from analyzer.cli.reading import dashboard

        dashboard([str(plain), str(residual)])


def _write_report(plain: Path, residual: Path) -> None:
    """Write the report of both nets beside their runs, and say where it is."""
    from analyzer.reports.html import write_report
    from analyzer.reports.story import story_of

    target = plain.with_name(f"{plain.name.removesuffix('-plain')}-report.html")
    write_report(story_of([plain, residual]), target)
    typer.echo(f"Report:      {target}")
