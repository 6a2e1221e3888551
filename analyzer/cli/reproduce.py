"""``analyzer reproduce NAME``: a published experiment, measured here and put beside the paper."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from analyzer.cli import AsJson

__all__ = ["reproduce"]


def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="he2015, he2016, veit2016, balduzzi2017, li2018, yang2019, desmith2020, "
            "hanin2018, xiong2020, cohen2021, gurari2018 or resmlp.",
        ),
    ],
    scale: Annotated[
        str,
        typer.Option(
            "--scale",
            metavar="laptop|full|tiny",
            help="laptop: minutes on two cores; full: the setting of the paper, for a GPU; tiny: "
            "seconds, only to see that it runs.",
        ),
    ] = "laptop",
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="The folder of CIFAR-10. Default: scikit-learn's digits."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where measured numbers and the table go; a stopped measurement resumes there. "
            "Default: reproduced/NAME-SCALE.",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", metavar="N", help="Seeds, in place of the scale's.")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="As torch writes it, or auto.")
    ] = "auto",
    json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Measure what a paper published, and print both: agrees, disagrees, or not comparable.

    The table says its source, what was changed to fit this machine, the seeds and their spread. A
    disagreement is printed like an agreement. The bounds are stated before anything is measured.

    Example:
        analyzer reproduce yang2019
        analyzer reproduce he2015 --scale full --data cifar/
    """
    from analyzer.cli.terminal import console, json_text, table_box, writing
    from analyzer.studies.published import HEAD, as_json, markdown, notes, outcomes, rows
    from analyzer.studies.reproduce import experiment
    from analyzer.studies.reproduce import reproduce as measure

    chosen = experiment(name)
    folder = out or Path("reproduced") / f"{name}-{scale}"

    def on_part(done: int, total: int, part: str) -> None:
        if not quiet:
            print(f"analyzer: {name}: {done} of {total} parts; now {part}", file=sys.stderr)

    with writing("--out", folder, is_folder=True):
        table, about = measure(
            name,
            folder,
            scale=scale,
            data=data,
            seeds=seeds,
            device=device,
            on_part=on_part,
        )
        (folder / "table.md").write_text(markdown(chosen, table, about), encoding="utf-8")
        plain = json_text(as_json(chosen, table, about))
        (folder / "table.json").write_text(plain + "\n", encoding="utf-8")
    if json:
        typer.echo(plain)
        return
    from rich.table import Table

    found = outcomes(chosen, table, scale)
    shown = Table(box=table_box(), pad_edge=False)
    for title in HEAD:
        shown.add_column(title, overflow="fold")
    for row in rows(found):
        shown.add_row(*row)
    screen = console()
    screen.print(f"{chosen.title}.\n{chosen.source}\n", soft_wrap=True)
    screen.print(shown)
    for line in notes(chosen, found, scale):
        screen.print(line + "\n", soft_wrap=True)
    screen.print(f"Numbers:     {folder / 'measured.parquet'}", soft_wrap=True)
