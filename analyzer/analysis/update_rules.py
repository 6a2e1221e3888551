"""Findings about updates: weights that hardly move, and weights that are replaced."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.evidence import Evidence
from analyzer.analysis.finding import Finding, named, short

__all__ = ["large_updates", "median_update_ratios", "small_updates"]

# Warm-up and the end of a decay say nothing about the updates that train.
_LEAST_RATE = 0.1


def median_update_ratios(evidence: Evidence) -> NDArray[np.float64]:
    """Return the median over steps of ``‖Δθ‖ / ‖θ‖`` of each parameter.

    Steps with a learning rate below a tenth of the largest are left out, and those at which the
    parameter was zero or received no gradient or one that is exactly zero.

    Returns:
        ``[parameters]``, without unit; NaN where nothing is left, for parameters that are not
        trained, and for those with fewer than two axes: a bias or a gain that starts at zero moves
        by any ratio.
    """
    history = evidence.update_history
    norms, moved = history.values["norm"], history.values["update_norm"]
    counts = (norms > 0) & (history.values["gradient_norm"] > 0) & np.isfinite(moved)
    counts &= _at_full_rate(evidence, history.steps)[:, None]
    is_weight = np.array([len(shape) > 1 for shape in evidence.parameters["shape"]], bool)
    counts &= is_weight & evidence.parameters["trained"].to_numpy(bool)
    ratios = np.full(len(is_weight), np.nan)
    for place in np.flatnonzero(counts.any(axis=0)):
        some = counts[:, place]
        ratios[place] = np.median(moved[some, place] / norms[some, place])
    return ratios


def _at_full_rate(evidence: Evidence, steps: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the learning rate of each step is at least a tenth of the largest."""
    if not len(steps):
        return np.zeros(0, bool)
    rows = evidence.run.read("steps", "learning_rate", steps=steps)
    rates = rows.column("learning_rate").to_numpy(zero_copy_only=False).astype(np.float64)
    place = np.searchsorted(steps, rows.column("step").to_numpy())
    all_rates = np.full(len(steps), np.nan)
    all_rates[place] = rates
    if not np.isfinite(all_rates).any():
        return np.ones(len(steps), bool)
    full: NDArray[np.bool_] = ~(all_rates < _LEAST_RATE * np.nanmax(all_rates))
    return full


def _finding(
    evidence: Evidence,
    ratios: NDArray[np.float64],
    chosen: NDArray[np.bool_],
    worst: float,
    code: str,
    limit: float,
    words: tuple[str, str],
) -> list[Finding]:
    """The finding about the chosen weights."""
    if not chosen.any():
        return []
    steps = evidence.update_history.steps
    weights = [str(n) for n, yes in zip(evidence.parameters["name"], chosen, strict=True) if yes]
    ids = set(evidence.parameters["layer"][chosen].dropna().astype(int))
    pairs = zip(evidence.layers["layer"], evidence.names, strict=True)
    return [
        Finding(
            code,
            "warning",
            tuple(name for layer, name in pairs if layer in ids) or tuple(weights),
            (int(steps[0]), int(steps[-1])),
            worst,
            limit,
            f"{int(chosen.sum())} of {int(np.isfinite(ratios).sum())} weights {words[0]} "
            f"({named(weights)}): at worst the median update is {short(worst)} of the weight's "
            "norm.",
            words[1],
        )
    ]


def small_updates(evidence: Evidence, limits: Mapping[str, float]) -> list[Finding]:
    """Weights that hardly move although a gradient reaches them."""
    limit, ratios = limits["update_ratio_low"], median_update_ratios(evidence)
    chosen = ratios < limit
    worst = float(ratios[chosen].min()) if chosen.any() else 0.0
    words = (
        "hardly move",
        "Raise the learning rate of these weights; look for a second optimizer, a zero learning "
        "rate, or a loss that is scaled down.",
    )
    return _finding(evidence, ratios, chosen, worst, "update_too_small", limit, words)


def large_updates(evidence: Evidence, limits: Mapping[str, float]) -> list[Finding]:
    """Weights that a few updates replace."""
    limit, ratios = limits["update_ratio_high"], median_update_ratios(evidence)
    chosen = ratios > limit
    worst = float(ratios[chosen].max()) if chosen.any() else 0.0
    words = ("are replaced by their updates", "Lower the learning rate, warm it up, or clip.")
    return _finding(evidence, ratios, chosen, worst, "update_too_large", limit, words)
