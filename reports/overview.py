"""The first words of a report: its title, what it found, and a line for each run."""

from typing import Any

import pandas as pd

from analyzer.analysis.gradient_flow import Gain, depth_profile, profile_gain
from analyzer.analysis.numerals import counted, number
from analyzer.analysis.training import run_training
from analyzer.storage.run import Run

from .grouping import has_shortcuts, seed_of
from .story import Story

__all__ = ["claim_rows", "lead_of", "note_of", "overview", "title_of"]


def title_of(story: Story) -> str:
    """Return the title: the runs by name, or the groups where there are several seeds."""
    names = [group.label for group in story.groups]
    if len(names) > 3:
        names = [*names[:2], f"{len(names) - 2} more"]
    joined = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"Gradient flow of {joined}"


def lead_of(story: Story) -> str:
    """Return one sentence: the verdict on a pair, else the worst finding, else the gain."""
    if story.verdict is not None:
        return str(story.verdict.sentence)
    found = [one for _, of_run in story.findings for one in of_run]
    if found:
        # A training that broke says so in the first line, also where something else came first.
        first = [one for one in found if one.code == "nonfinite"] or found
        return str(first[0].sentence)
    return "; ".join(_gain_words(run) for run in story.shown)


def note_of(story: Story) -> str:
    """Return which runs the figures show, where that is not all of them."""
    if len(story.shown) == len(story.runs):
        return ""
    names = ", ".join(f"{run.name} (seed {seed_of(run.manifest)})" for run in story.shown)
    return (
        f"Figures show {counted(len(story.shown), 'run')} of {len(story.runs)}: {names}. Mean and "
        "spread over seeds have a section of their own."
    )


def last_gain(run: Run) -> Gain | None:
    """Return the fitted gain at the last recorded step; None without one."""
    steps = run.layer_steps()
    return profile_gain(depth_profile(run, int(steps[-1]))) if len(steps) else None


def _gain_words(run: Run) -> str:
    gain = last_gain(run)
    if gain is None or not gain.is_defined:
        return f"{run.name}: no gain can be fitted"
    return f"{run.name}: gain {number(gain.gain)} per layer at the last recorded step"


def overview(story: Story) -> pd.DataFrame:
    """Return one row for each run: kind, status, size, loss and gain."""
    return pd.DataFrame([_row(run) for run in story.runs])


def _row(run: Run) -> dict[str, Any]:
    gain, training = last_gain(run), run_training(run)
    return {
        "run": run.name,
        "kind": "residual" if has_shortcuts(run) else "plain",
        "seed": seed_of(run.manifest),
        "status": run.status,
        "steps": training.num_steps,
        "layers": len(run.layers),
        "joins": len(run.joins),
        "first loss": training.first_loss,
        "final loss": training.final_loss,
        "gain per layer": float("nan") if gain is None else gain.gain,
    }


def claim_rows(story: Story) -> list[dict[str, str]]:
    """Return the claims of the verdict as text, with a word for their color.

    A claim that no figure of the report shows has no ``panel``.
    """
    if story.verdict is None:
        return []
    keys = {figure.key for figure in story.figures}
    return [
        {
            "key": claim.key,
            "text": claim.text,
            "status": claim.status,
            "mark": claim.status if claim.status in ("holds", "fails") else "unknown",
            "plain": _value(claim.plain, claim.plain_spread),
            "residual": _value(claim.residual, claim.residual_spread),
            "reference": claim.reference,
            "query": claim.query,
            "panel": f"figure-{claim.panel}" if claim.panel in keys else "",
        }
        for claim in story.verdict.claims
    ]


def _value(value: float | None, spread: tuple[float, float] | None) -> str:
    """A number, with its range over seeds."""
    if value is None:
        return "–"
    if spread is None:
        return number(value)
    return f"{number(value)} ({number(spread[0])} to {number(spread[1])})"
