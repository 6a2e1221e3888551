"""Coordinate check: how activations, gradients and updates of each layer grow with width."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from analyzer.analysis.finding import markdown_table
from analyzer.errors import AnalyzerError
from analyzer.networks.blocks import private_random_state
from analyzer.networks.loop import optimizer as built_in
from analyzer.studies.coordinate_sizes import Key, Measured
from analyzer.studies.expected_growth import PARAMETRIZATIONS, Part, rule_of
from analyzer.studies.growth import QUANTITIES, Growth, expect_same_names, judged, short

__all__ = ["PARAMETRIZATIONS", "CoordinateCheck", "Growth", "coordinate_check"]

# Tried in turn where no number of seeds was given, until they decide.
_SEEDS = (6, 12, 24)
# More seeds than these say that the widths are too small.
_MOST_SEEDS = 40


@dataclass(frozen=True)
class CoordinateCheck:
    """The check of a network: each layer and quantity, and the layer to look at first."""

    parametrization: str
    widths: tuple[int, ...]
    steps: int
    seeds: int
    growths: tuple[Growth, ...]

    @property
    def look_at(self) -> str | None:
        """The name of the layer whose weights to look at first; None where none differs.

        That of the culprit; for a gradient the layer behind it, through whose weights it arrives.
        """
        if (one := self.culprit) is None or one.quantity != "gradient":
            return None if one is None else one.layer
        same = [o.layer for o in self.growths if (o.quantity, o.depth) == ("gradient", one.depth)]
        return same[min(same.index(one.layer) + 1, len(same) - 1)]

    @property
    def outcome(self) -> str:
        """``differs``, ``undecided`` (an exponent is unclear, or none is judged) or ``passes``."""
        verdicts = {one.verdict for one in self.growths}
        if "differs" in verdicts:
            return "differs"
        return "passes" if verdicts - {"not judged"} == {"as expected"} else "undecided"

    @property
    def passes(self) -> bool:
        """Whether every exponent that is judged is as expected."""
        return self.outcome == "passes"

    @property
    def culprit(self) -> Growth | None:
        """The first that differs in the order of causes; None where none does.

        At initialization what each parameter makes of its input, then activations, in the order of
        the forward pass; gradients in that of the backward pass; then, step by step, what each
        parameter's update makes of its input, and what all updates together do, in the order of
        the forward pass. What comes later in this order follows from what came before.
        """
        wrong = [one for one in self.growths if one.verdict == "differs"]
        backward = [one for one in reversed(wrong) if one.quantity == "gradient"]
        forward = [one for one in wrong if one.quantity != "gradient"]
        ordered = sorted(
            backward + forward, key=lambda one: (one.step, QUANTITIES.index(one.quantity))
        )
        return ordered[0] if ordered else None

    def sentence(self) -> str:
        """Return the outcome in a sentence."""
        if (one := self.culprit) is not None:
            through = "" if one.layer == self.look_at else f"; it arrives through {self.look_at}"
            return one.sentence() + through + "."
        judged = [one for one in self.growths if one.verdict != "not judged"]
        if not judged:
            return "undecided: no exponent can be judged."
        unclear = [one for one in judged if one.verdict == "unclear"]
        if not unclear:
            return (
                f"all {len(judged)} exponents that are judged are as the {self.parametrization} "
                "parametrization expects."
            )
        seeds = max(one.seeds for one in unclear)
        if any(one.reason for one in unclear):
            advice = (
                "are not finite, or lost in noise: try larger widths, or a smaller learning rate"
            )
        elif seeds <= _MOST_SEEDS:
            advice = f"need more seeds: try --seeds {seeds}"
        else:
            advice = "lie between right and wrong: try larger widths"
        rest = "the others are as expected" if len(unclear) < len(judged) else "none is decided"
        return (
            f"undecided: {len(unclear)} of {len(judged)} exponents {advice}; {rest}. The first: "
            f"{unclear[0].sentence()}."
        )

    def table(self) -> list[tuple[str, ...]]:
        """Return the cells: layer, depth, role, what, exponent, interval, expected, verdict."""
        return [
            (
                f"{one.layer}.{one.parameter}" if one.parameter else one.layer,
                "" if one.depth is None else str(one.depth),
                one.role,
                one.quantity + (f" {one.step}" if one.step else ""),
                short(one.exponent),
                "" if one.interval is None else " to ".join(map(short, one.interval)),
                one.expectation(),
                f"{one.verdict}: {one.reason}" if one.reason else one.verdict,
            )
            for one in self.growths
        ]

    def markdown(self) -> str:
        """Return the table in Markdown, below its sentence."""
        head = ("layer", "depth", "role", "quantity", "width^", "95 %", "expected", "verdict")
        return f"{self.sentence()}\n\n{markdown_table(head, self.table())}\n"


def coordinate_check(
    build_model: Callable[..., nn.Module],
    widths: Sequence[int] = (64, 128, 256, 512),
    depths: Sequence[int | None] = (None,),
    *,
    data: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Any, Any], Tensor] = cross_entropy,
    build_optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    learning_rate: float = 0.1,
    parametrization: str = "standard",
    steps: int = 2,
    seeds: int | None = None,
) -> CoordinateCheck:
    """Fit how activations, gradients and updates of each layer grow with width.

    For each width and seed a network is built and takes a few steps. Root mean squares are taken of
    each layer with weights y = f(x; p):

    ``activation``, its output y₀ at initialization; ``gradient``, ∂L/∂y₀, per element; ``update``,
    the change of y on the first batch since initialization, after each step.

    And of each parameter p of it alone, at the input x₀ that the layer has at initialization:
    ``own activation``, f(x₀; p₀) − f(x₀; 0), and ``own update``, f(x₀; p) − f(x₀; p₀), for a linear
    layer the parts W₀x₀ and ΔW·x₀ without the bias. Their exponents tell of the layer alone, not of
    those before or behind it: the exponent that the layers before give to x₀ is subtracted from
    those of weights (twice from an own update of SGD, in which the input is twice), and from own
    updates of SGD what the exponent of the gradient has more than expected. Of the own update of a
    weight with a fan-in that grows it is the part of units that act together: what remains of its
    square without that of an update of random signs. It is taken after the first step that moves
    the parameter: behind a readout of zeros that is the second.

    The exponent is the slope of ln(value) over ln(width), by seed. What is expected of it is in
    docs/coordinate-check.md.

    Args:
        build_model: Takes ``width`` and, unless it is None, ``depth``: by name, else in this order.
        widths: At least 3, rising; each twice the one before is usual.
        depths: The check is made at each of them.
        data: Pairs (input, target); the first is the one that is measured.
        loss: ``loss(output, target)``, the mean over the batch.
        build_optimizer: ``build_optimizer(model)``; SGD without one.
        learning_rate: That of SGD.
        parametrization: ``standard`` | ``maximal-update``.
        steps: Updates after each of which the change of the outputs is measured.
        seeds: Networks of each width, at least 2; without, 6, and 12 or 24 where 6 do not decide.

    Returns:
        One `Growth` for each depth, quantity and layer, in call order; with ``culprit``.

    Raises:
        AnalyzerError: If the networks cannot be compared: fewer than 3 widths, layers whose names
            differ by width, an unknown parametrization, no data.

    Reference:
        Yang & Hu (2021), Tensor programs IV; Yang et al. (2022), Tensor programs V, appendix D.1.
    """
    _expect(widths, parametrization, steps, seeds)
    pairs = list(itertools.islice(data, steps))
    if not pairs:
        raise AnalyzerError("the coordinate check has no data; expected pairs (input, target).")
    # What no later step is expected to do needs no measuring.
    own_steps = steps if parametrization == "maximal-update" else 1
    values: dict[int | None, dict[Key, dict[int, list[float]]]] = {depth: {} for depth in depths}
    parts: dict[int | None, dict[int, dict[tuple[str, str], Part]]] = {one: {} for one in depths}
    rule, done = "", 0
    for count in _SEEDS if seeds is None else (seeds,):
        for depth, seed, width in itertools.product(depths, range(done, count), widths):
            with private_random_state(seed):
                model = _built(build_model, width, depth)
                stepper = _stepper(model, build_optimizer, learning_rate)
                rule = rule_of(stepper)
                measured = Measured(model, pairs, loss)
                for key, value in measured.sizes(stepper, steps, own_steps).items():
                    values[depth].setdefault(key, {}).setdefault(seed, []).append(value)
            if seed == 0:
                parts[depth][width] = measured.parts()
                expect_same_names(parts[depth])
        done = count
        found = [
            growth
            for one in depths
            for growth in judged(parametrization, rule, one, values[one], parts[one])
        ]
        check = CoordinateCheck(parametrization, tuple(widths), steps, done, tuple(found))
        if check.outcome != "undecided":
            break
    return check


def _built(build_model: Callable[..., nn.Module], width: int, depth: int | None) -> nn.Module:
    given = {"width": width} if depth is None else {"width": width, "depth": depth}
    is_named = given.keys() <= inspect.signature(build_model).parameters.keys()
    return build_model(**given) if is_named else build_model(*given.values())


def _expect(widths: Sequence[int], parametrization: str, steps: int, seeds: int | None) -> None:
    if parametrization not in PARAMETRIZATIONS:
        raise AnalyzerError(
            f"the parametrization is '{parametrization}'; expected one of "
            f"{', '.join(PARAMETRIZATIONS)}."
        )
    if len(set(widths)) < 3 or min(widths) < 1:
        raise AnalyzerError(
            f"the widths are {', '.join(map(str, widths)) or 'none'}; expected at least 3 "
            "different ones, as in 64,128,256."
        )
    if steps < 1 or (seeds is not None and seeds < 2):
        raise AnalyzerError(
            f"steps is {steps} and seeds is {seeds}; expected at least 1 step, and 2 "
            "seeds: one has no spread."
        )


def _stepper(
    model: nn.Module,
    build_optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None,
    learning_rate: float,
) -> torch.optim.Optimizer:
    if build_optimizer is not None:
        return build_optimizer(model)
    stepper = built_in("sgd", model, learning_rate)
    for group in stepper.param_groups:
        group["momentum"] = 0.0
    return stepper
