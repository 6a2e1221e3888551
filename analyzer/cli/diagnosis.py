"""The findings of a run as text and as JSON, and thresholds from the command line."""

import textwrap
from collections.abc import Mapping, Sequence

from rich.console import Console

from analyzer.analysis.findings import THRESHOLDS, Finding, thresholds_with
from analyzer.cli.findings_text import finding_lines, findings_summary
from analyzer.cli.terminal import printable
from analyzer.errors import AnalyzerError
from analyzer.storage.run import Run

__all__ = ["overrides", "print_diagnosis", "print_thresholds"]


def overrides(given: Sequence[str]) -> dict[str, float]:
    """Return the thresholds of ``--threshold NAME=VALUE`` options by name.

    Raises:
        AnalyzerError: If one is not of this form, or names no threshold.
    """
    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            values[name.strip()] = float(value) if equals else float("nan")
            thresholds_with({name.strip(): values[name.strip()]})
        except ValueError:
            raise AnalyzerError(
                f"--threshold is {text!r}; expected NAME=VALUE with a number and a NAME of "
                f"{', '.join(THRESHOLDS)}. Write for example --threshold vanishing_decades=2"
            ) from None
    return values


def print_thresholds(limits: Mapping[str, float], console: Console) -> None:
    """Print every threshold with its value and its reason."""
    values = thresholds_with(limits)
    for name, threshold in THRESHOLDS.items():
        line = f"{name} = {values[name]:g}: {threshold.reason}."
        console.print(
            "\n".join(textwrap.wrap(line, console.width, subsequent_indent="    ")), soft_wrap=True
        )


def print_diagnosis(run: Run, found: Sequence[Finding], console: Console) -> None:
    """Print the findings of a run."""
    steps = len(run.recorded_steps())
    console.print(f"{printable(run.name)}: {steps:,} steps, {run.status}", soft_wrap=True)
    console.print(findings_summary(found), soft_wrap=True)
    for line in finding_lines(found):
        indent = "    " if line.startswith("    ") else "  "
        wrapped = textwrap.wrap(
            line.strip(),
            console.width,
            initial_indent="    " if line.startswith("    ") else "",
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
        console.print("\n".join(wrapped), soft_wrap=True)
