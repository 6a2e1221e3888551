"""Two runs side by side: their numbers, and both profiles by relative depth."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.findings import findings
from analyzer.analysis.gradient_flow import (
    DepthProfile,
    Gain,
    depth_profile,
    profile_gain,
    relative_depth,
)
from analyzer.analysis.numerals import decades_fallen, number
from analyzer.analysis.training import TrainingSummary, run_training
from analyzer.errors import NotRecordedError
from analyzer.storage.arrays import as_floats
from analyzer.storage.run import Run

__all__ = ["Comparison", "compare_runs", "on_grid"]

_PLACES = 11

Floats = NDArray[np.float64]
Facts = tuple[Gain, TrainingSummary]


@dataclass(frozen=True)
class ComparedRun:
    """The numbers of one run.

    Args:
        shortcut_share: Median over joins and steps; None without splits.
        step: The last step with layer statistics, that of ``gain``.
        gain: Factor of the output gradient per layer, going backward; None where none is defined.
        decades_fallen: Decades from the last layer to the first; None together with ``gain``.
        first_loss: Loss of the first step; None without one.
        final_loss: Mean loss of the last tenth of the steps, at most 100; None without one.
        best_loss: Lowest finite loss; None without one.
        seconds: Wall time of the recorded steps.
        findings: Codes of the findings, the most severe first.
    """

    name: str
    status: str
    steps: int
    layers: int
    joins: int
    shortcut_share: float | None
    step: int
    gain: float | None
    decades_fallen: float | None
    first_loss: float | None
    final_loss: float | None
    best_loss: float | None
    seconds: float
    findings: tuple[str, ...]


@dataclass(frozen=True)
class ProfileRow:
    """Output gradient norms of both runs at one place.

    Args:
        relative_depth: From 0, the first layer, to 1, the last.
        left: Norm of the left run, between layers on a straight line of its logarithm; None where
            no layer on one side of the place has a usable gradient.
        log10_ratio: Decades that the right one is larger; None where either is.
    """

    relative_depth: float
    left: float | None
    right: float | None
    log10_ratio: float | None


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side, both profiles at the last step, and their numbers in a sentence."""

    left: ComparedRun
    right: ComparedRun
    profile: tuple[ProfileRow, ...]
    sentence: str


def on_grid(profile: DepthProfile, places: Floats) -> Floats:
    """Return norms at places of relative depth, from 0 (first layer) to 1 (last), ``[places]``.

    They are interpolated on a logarithmic scale between layers with parameters and a usable
    gradient, of several at one depth their median; NaN outside of these layers.
    """
    owners = profile.has_parameters
    usable = profile.usable[owners]
    if not usable.any():
        return np.full(len(places), np.nan)
    # The axis is that of all layers with parameters, so that a lost one leaves its place empty.
    x, logs = relative_depth(profile.depths[owners])[usable], np.log(profile.norms[owners][usable])
    depths = np.unique(x)
    medians = [float(np.median(logs[x == depth])) for depth in depths]
    return np.exp(np.interp(places, depths, medians, left=np.nan, right=np.nan))


def compare_runs(left: Run, right: Run) -> Comparison:
    """Put two runs side by side.

    The sentence only puts their numbers side by side: what separates a plain run from a residual
    one is for `analyzer.analysis.verdict.verdict` to say.

    Raises:
        NotRecordedError: If a run holds no layer statistics.
    """
    runs = (left, right)
    profiles = [depth_profile(run, _last_step(run)) for run in runs]
    facts = [
        (profile_gain(profile), run_training(run))
        for profile, run in zip(profiles, runs, strict=True)
    ]
    rows = [_numbers(*each) for each in zip(runs, profiles, facts, strict=True)]
    return Comparison(rows[0], rows[1], _profile(profiles), f"{'; '.join(map(_neutral, rows))}.")


def _last_step(run: Run) -> int:
    step = run.nearest_step(None, "layer_stats")
    if step is None:
        raise NotRecordedError(
            f"run '{run.name}' holds no layer statistics to compare; record a training that "
            "reaches a backward pass"
        )
    return step


def _numbers(run: Run, profile: DepthProfile, facts: Facts) -> ComparedRun:
    gain, training = facts
    has_loss = training.num_losses > 0
    return ComparedRun(
        name=run.name,
        status=run.status,
        steps=training.num_steps,
        layers=len(run.layers),
        joins=len(run.joins),
        shortcut_share=_share(run),
        step=profile.step,
        gain=gain.gain if gain.is_defined else None,
        decades_fallen=gain.decades_fallen if gain.is_defined else None,
        first_loss=training.first_loss if has_loss else None,
        final_loss=training.final_loss if has_loss else None,
        best_loss=None if training.best_step is None else training.best_loss,
        seconds=training.seconds,
        findings=tuple(finding.code for finding in findings(run)),
    )


def _profile(profiles: list[DepthProfile]) -> tuple[ProfileRow, ...]:
    places = np.linspace(0, 1, _PLACES)
    left, right = (on_grid(profile, places) for profile in profiles)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.log10(right) - np.log10(left)
    return tuple(
        ProfileRow(round(float(x), 3), _known(a), _known(b), _known(ratio))
        for x, a, b, ratio in zip(places, left, right, ratios, strict=True)
    )


def _known(value: float) -> float | None:
    """The value; None for NaN, which marks a place without one."""
    return None if math.isnan(value) else float(value)


def _share(run: Run) -> float | None:
    """Median share of the shortcuts over joins and steps."""
    shares = as_floats(run.read("splits", "shortcut_share").column("shortcut_share"))
    return _known(float(np.median(shares[~np.isnan(shares)]))) if len(shares) else None


def _neutral(run: ComparedRun) -> str:
    """Gain and loss of one run of two, without calling it plain or residual."""
    gain = "no gain" if run.gain is None else f"gain {number(run.gain)} per layer"
    if run.decades_fallen is not None:
        gain += f" at step {run.step}, the output gradient {decades_fallen(run.decades_fallen)}"
    loss = "no loss" if run.final_loss is None else f"final loss {number(run.final_loss)}"
    return f"{run.name}: {gain}, {loss}"
