"""What separates runs: a verdict on plain and residual ones by claims, and two side by side."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.claim_numbers import shortcut_share
from analyzer.analysis.claims import Claim, claims
from analyzer.analysis.findings import findings
from analyzer.analysis.gradient_flow import (
    ROUTE,
    DepthProfile,
    depth_profile,
    profile_gain,
    relative_depth,
    span_decades,
)
from analyzer.analysis.numerals import decades_fallen, number, with_range
from analyzer.analysis.sentences import (
    DepthFacts,
    Trend,
    ends_lower,
    headline,
    loss_clause,
    outcome,
    trend_clause,
    trend_of,
)
from analyzer.analysis.training import TrainingSummary, run_training
from analyzer.analysis.view import has_shortcuts
from analyzer.errors import NotRecordedError
from analyzer.storage.run import Run

__all__ = ["Comparison", "Verdict", "compare_runs", "difference", "verdict"]

_PLACES = 11

Floats = NDArray[np.float64]
Facts = tuple[DepthFacts, TrainingSummary]

Claims = Mapping[str, Claim]
_INSTEAD = (
    ("shattering", "shattered gradients (correlation {plain} against {residual})"),
    ("conditioning", "conditioning (condition number {plain} against {residual})"),
    ("first_update", "the first layer's update ratio ({plain} against {residual})"),
)


@dataclass(frozen=True)
class Verdict:
    """What separates a plain and a residual run.

    Args:
        sentence: Two to five sentences, each with its numbers: the mechanism first.
        note: How the plain run was made, as far as its manifest says.
    """

    sentence: str
    claims: tuple[Claim, ...]
    note: str = ""
    num_seeds: int = 1


def verdict(plain: Run | Sequence[Run], residual: Run | Sequence[Run]) -> Verdict:
    """Say what separates plain runs from residual ones, each one run or one for each seed.

    Vanishing gradients are claimed only where the fitted norm falls by 3 decades or more from the
    last layer to the first; elsewhere the sentence says so and names what differs instead. Over
    several seeds numbers are medians with their range, and a claim holds where it holds in all.

    Reference:
        He et al. (2015), Deep residual learning for image recognition, §4.1.
    """
    left = [plain] if isinstance(plain, Run) else list(plain)
    right = [residual] if isinstance(residual, Run) else list(residual)
    if len(left) != len(right) or not left:
        raise ValueError(
            f"got {len(left)} plain and {len(right)} residual runs; expected pairs. "
            "Give one plain run for each residual run"
        )
    found = claims(left, right)
    by_key = {claim.key: claim for claim in found}
    sentence = " ".join(filter(None, (part(by_key) for part in _PARTS)))
    return Verdict(_seeds(by_key, len(left)) + sentence, found, _twin_note(left[0]), len(left))


def _seeds(found: Claims, count: int) -> str:
    """Over how many seeds the medians are, and whether the seeds agree."""
    if count == 1:
        return ""
    vanish = found["vanishing"].num_holding
    split = f"; they disagree, gradients vanish in {vanish}" if 0 < vanish < count else ""
    return f"Over {count} seeds (medians, with ranges{split}): "


def _trends(claim: Claim) -> tuple[Trend, Trend]:
    """The norms of both along depth in a word, from the decades that they fall."""
    plain, residual = (math.nan if x is None else x for x in (claim.plain, claim.residual))
    return trend_of(plain), trend_of(residual)


def _plain(claim: Claim) -> str:
    return with_range(claim.plain, claim.plain_spread)


def _residual(claim: Claim) -> str:
    return with_range(claim.residual, claim.residual_spread)


def _mechanism(found: Claims) -> str:
    relative, claim = found["relative_gradient"], found["vanishing"]
    # A gradient of exactly 0 has no logarithm, so that no fit along depth would show it.
    if relative.plain == 0 and relative.residual:
        return (
            "Without shortcuts no gradient reaches the first layer: its norm is exactly 0 of that "
            f"at the output; with them it is {_residual(relative)} of it."
        )
    trends = _trends(claim)
    if Trend.UNKNOWN in trends:
        return f"{headline(*trends)}."
    without = decades_fallen(claim.plain, claim.plain_spread)
    within = decades_fallen(claim.residual, claim.residual_spread)
    return (
        f"{headline(*trends)}: without shortcuts the gradient {without} {ROUTE}, with them it "
        f"{within}."
    )


def _instead(found: Claims) -> str:
    """What differs where the norms do not separate them, or that it was not measured."""
    explained = (Trend.VANISHING, Trend.EXPLODING)
    if _trends(found["vanishing"])[0] in explained or found["relative_gradient"].plain == 0:
        return ""
    differing = [
        words.format(plain=_plain(c), residual=_residual(c))
        for key, words in _INSTEAD
        if (c := found[key]).status == "holds"
    ]
    missing = [k for k in ("shattering", "conditioning") if found[k].status == "not measured"]
    parts = []
    if differing:
        parts.append(f"What differs instead: {', '.join(differing)}.")
    elif not missing:
        parts.append("Neither shattering nor conditioning separates them.")
    if missing:
        parts.append(f"{' and '.join(missing).capitalize()} not measured.")
    return " ".join(parts)


def _shortcuts(found: Claims) -> str:
    start, share, paths = (found[k] for k in ("identity_start", "shortcut_share", "path_length"))
    parts = []
    if start.status == "holds" and start.residual is not None:
        parts.append(
            "The residual net starts as an identity: its shortcuts carry "
            f"{_residual(start)} of the gradient at first."
        )
    if share.residual is not None:
        over = f", over paths of {_residual(paths)} branches" if paths.residual is not None else ""
        parts.append(f"Shortcuts carry {_residual(share)} of the gradient{over}.")
    return " ".join(parts)


def _outcome(found: Claims) -> str:
    loss = found["training_loss"]
    if loss.plain is None or loss.residual is None:
        return ""
    spreads = (loss.plain_spread, loss.residual_spread)
    return outcome(loss.plain, loss.residual, loss.status == "holds", spreads)


_PARTS = (_mechanism, _instead, _shortcuts, _outcome)


def _twin_note(plain: Run) -> str:
    """How the plain run was made, as far as its manifest says."""
    scale = plain.manifest.get("skip_scale")
    if scale is None:
        return ""
    rescaled = plain.manifest.get("rescale") or plain.manifest.get("rescaled")
    branches = (
        "its branches were initialized again so that activation variances match"
        if rescaled
        else "its branches kept their scale, so activations have another scale than the original's"
    )
    of = f" of {', '.join(scale)}" if isinstance(scale, dict) else ""
    alpha = max(scale.values(), default=0) if isinstance(scale, dict) else scale
    return f"The plain run is a twin with every shortcut{of} multiplied by {alpha:g}; {branches}."


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
    """Two runs side by side, both profiles at the last step, and what separates them."""

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

    Where one of them has shortcuts and the other has none, the sentence calls them so.
    NotRecordedError is raised where a run holds no layer statistics.
    """
    runs = (left, right)
    profiles = [depth_profile(run, _last_step(run)) for run in runs]
    facts = [
        (DepthFacts(profile_gain(profile), span_decades(profile)), run_training(run))
        for profile, run in zip(profiles, runs, strict=True)
    ]
    rows = [_numbers(*each) for each in zip(runs, profiles, facts, strict=True)]
    if has_shortcuts(left) == has_shortcuts(right):
        sentence = f"{'; '.join(map(_neutral, rows))}."
    else:
        sentence = difference(*(facts if has_shortcuts(right) else facts[::-1]))
    return Comparison(rows[0], rows[1], _profile(profiles), sentence)


def difference(plain: Facts, residual: Facts) -> str:
    """Say what separates a plain run from its residual twin at one step.

    A headline, both runs with their numbers, and how the losses compare where both are known.
    Vanishing or exploding gradients are claimed only where the fit shows 3 decades or more between
    the last layer and the first; what could not be fitted is named.
    """
    clauses = [f"{trend_clause(facts)} and {loss_clause(run)}" for facts, run in (plain, residual)]
    text = (
        f"{headline(plain[0].trend, residual[0].trend)}: without shortcuts {clauses[0]}; "
        f"with them {clauses[1]}."
    )
    a, b = plain[1], residual[1]
    if not (a.num_losses and b.num_losses):
        return text
    scale = min(abs(a.first_loss), abs(b.first_loss))
    lower = ends_lower(a.final_loss, b.final_loss, scale)
    return f"{text} {outcome(a.final_loss, b.final_loss, lower)}"


def _last_step(run: Run) -> int:
    step = run.nearest_step(None, "layer_stats")
    if step is None:
        raise NotRecordedError(
            f"run '{run.name}' holds no layer statistics to compare; record a training that "
            "reaches a backward pass"
        )
    return step


def _numbers(run: Run, profile: DepthProfile, facts: Facts) -> ComparedRun:
    gain, training = facts[0].gain, facts[1]
    has_loss = training.num_losses > 0
    return ComparedRun(
        name=run.name,
        status=run.status,
        steps=training.num_steps,
        layers=len(run.layers),
        joins=len(run.joins),
        shortcut_share=_known(shortcut_share(run).value),
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


def _neutral(run: ComparedRun) -> str:
    """Gain and loss of one run of two of a kind, without calling it plain or residual."""
    gain = "no gain" if run.gain is None else f"gain {number(run.gain)} per layer"
    loss = "no loss" if run.final_loss is None else f"final loss {number(run.final_loss)}"
    return f"{run.name}: {gain}, {loss}"
