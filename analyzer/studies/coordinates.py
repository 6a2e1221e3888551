"""Coordinate check: how activations, gradients and updates of each layer grow with width."""

from __future__ import annotations

import inspect
import itertools
import math
import statistics
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
from analyzer.studies.measuring import Scores, layer_sizes
from analyzer.studies.published import interval_of, slope

__all__ = ["PARAMETRIZATIONS", "CoordinateCheck", "Growth", "coordinate_check"]

PARAMETRIZATIONS = ("standard", "maximal-update")
QUANTITIES = ("activation", "gradient", "update")
_Key = tuple[str, int, str]

# Right and wrong parametrizations differ by halves.
_HALF_WAY = 0.25
_EXPECTED: dict[str, dict[str, dict[str, float]]] = {
    "maximal-update": {
        "activation": {"input": 0.0, "hidden": 0.0, "output": -0.5},
        "gradient": {"input": -1.0, "hidden": -1.0, "output": 0.0},
        "update": {"input": 0.0, "hidden": 0.0, "output": 0.0, "scores": 0.0},
    },
    "standard": {
        "activation": {"input": 0.0, "hidden": 0.0, "output": 0.0},
        "gradient": {"input": -0.5, "hidden": -0.5, "output": 0.0},
    },
}
# In the place of the fan-in and the size of a layer.
_SCORES = (-1, 0)
# One learning rate for all layers: how far the first step moves each layer's output.
_STANDARD_UPDATE = {
    "SGD": {"input": -0.5, "hidden": 0.5, "output": 1.0},
    "Adam": {"input": 0.0, "hidden": 1.0, "output": 1.0},
    "AdamW": {"input": 0.0, "hidden": 1.0, "output": 1.0},
}


@dataclass(frozen=True)
class Growth:
    """How one quantity of one layer grows with width.

    Args:
        layer: Name of the layer, the same at all widths.
        role: ``input`` (its fan-in does not grow with width), ``hidden``, ``output`` (its output
            does not) or ``scores`` (what the softmax of an attention is given).
        quantity: ``activation``, ``gradient`` or ``update``.
        step: Updates that were made before: 0 for activation and gradient.
        exponent: The mean over seeds of the fitted exponent; NaN where a value is 0 or not finite.
        interval: 95 %, Student's t over seeds; None for one seed.
        expected: By the parametrization; None where it says nothing.
        is_bound: Whether less is right, too: in the maximal-update parametrization a smaller
            gradient (behind a readout of zeros, or scores divided by the width of a head) and
            smaller scores do no harm.
        verdict: ``as expected`` | ``differs`` | ``unclear`` | ``not judged``.
    """

    layer: str
    role: str
    quantity: str
    step: int
    depth: int | None
    exponent: float
    interval: tuple[float, float] | None
    expected: float | None
    is_bound: bool
    verdict: str

    def sentence(self) -> str:
        """Return what is found in words, as in ``layer fc2 grows as width^0.5, expected 0``."""
        what = "" if self.quantity == "activation" else f"{self.quantity} of "
        after = f" after step {self.step}" if self.step > 1 else ""
        at_depth = "" if self.depth is None else f" at depth {self.depth}"
        low, high = self.interval or (self.exponent, self.exponent)
        return (
            f"{what}layer {self.layer}{at_depth}{after} grows as width^{_short(self.exponent)} "
            f"({_short(low)} to {_short(high)}), expected {self.expectation()}"
        )

    def expectation(self) -> str:
        """Return what is expected in words; empty where nothing is."""
        if self.expected is None:
            return ""
        return f"{'at most ' if self.is_bound else ''}{_short(self.expected)}"


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
    def passes(self) -> bool:
        """Whether no layer differs from what is expected."""
        return not any(one.verdict == "differs" for one in self.growths)

    @property
    def culprit(self) -> Growth | None:
        """The first layer that differs in the order of causes; None where none does.

        Activations at initialization in the order of the forward pass, then gradients in that of
        the backward pass, then updates in that of the forward pass: what comes later in this order
        follows from what came before.
        """
        wrong = [one for one in self.growths if one.verdict == "differs"]
        backward = [one for one in reversed(wrong) if one.quantity == "gradient"]
        forward = [one for one in wrong if one.quantity != "gradient"]
        ordered = sorted(
            backward + forward, key=lambda one: (QUANTITIES.index(one.quantity), one.step)
        )
        return ordered[0] if ordered else None

    def sentence(self) -> str:
        """Return the verdict in a sentence."""
        if (one := self.culprit) is not None:
            through = "" if one.layer == self.look_at else f"; it arrives through {self.look_at}"
            return one.sentence() + through + "."
        judged = [one.verdict for one in self.growths if one.verdict != "not judged"]
        told = f"{judged.count('as expected')} of {len(judged)} exponents"
        return f"{told} are as the {self.parametrization} parametrization expects, none differs" + (
            "." if "unclear" not in judged else "; more seeds would settle the others."
        )

    def table(self) -> list[tuple[str, ...]]:
        """Return the cells: layer, depth, role, what, exponent, interval, expected, verdict."""
        return [
            (
                one.layer,
                "" if one.depth is None else str(one.depth),
                one.role,
                one.quantity + (f" {one.step}" if one.step else ""),
                _short(one.exponent),
                "" if one.interval is None else " to ".join(map(_short, one.interval)),
                one.expectation(),
                one.verdict,
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
    seeds: int = 6,
) -> CoordinateCheck:
    """Fit how activations, gradients and updates of each layer grow with width.

    For each width and seed a network is built and takes a few steps. Of each layer with weights:
    ``activation``, the root mean square of its output at initialization; ``gradient``, that of
    ∂L/∂(output), per element; ``update``, that of the change of its output on the first batch since
    initialization, after each step. The exponent is the slope of ln(value) over ln(width), by seed.

    Expected, per element: *maximal update*: activation 0 (output −½), gradient −1 (output 0),
    update 0. *Standard* (weights of variance 1/fan-in): activation 0, gradient −½ (output 0); with
    one learning rate for all layers update −½, ½, 1 (input, hidden, output) after the first step of
    SGD and 0, 1, 1 after that of Adam, the growth that makes a learning rate useless at another
    width.

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
        seeds: Networks of each width.

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
    found: list[Growth] = []
    for depth in depths:
        curves: dict[_Key, dict[int, list[tuple[float, float]]]] = {}
        shapes: dict[int, dict[str, tuple[int, int]]] = {}
        rule = ""
        for width, seed in itertools.product(widths, range(seeds)):
            with private_random_state(seed):
                model = _built(build_model, width, depth)
            stepper = _stepper(model, build_optimizer, learning_rate)
            rule = type(stepper).__name__
            values, shapes[width] = _sizes(model, stepper, pairs, loss, steps)
            for key, value in values.items():
                curve = curves.setdefault(key, {}).setdefault(seed, [])
                curve.append((math.log(width), math.log(value) if value > 0 else math.nan))
        roles = _roles(shapes)
        expected = _expectations(parametrization, rule)
        for (quantity, step, layer), by_seed in curves.items():
            wanted = expected.get((quantity, step), expected.get((quantity, None), {}))
            slopes = [slope(curve) for curve in by_seed.values()]
            role = roles[layer]
            is_bound = parametrization == "maximal-update" and (
                quantity == "gradient" or role == "scores"
            )
            found.append(
                _growth(layer, role, quantity, step, depth, slopes, wanted.get(role), is_bound)
            )
    return CoordinateCheck(parametrization, tuple(widths), steps, seeds, tuple(found))


def _built(build_model: Callable[..., nn.Module], width: int, depth: int | None) -> nn.Module:
    given = {"width": width} if depth is None else {"width": width, "depth": depth}
    is_named = given.keys() <= inspect.signature(build_model).parameters.keys()
    return build_model(**given) if is_named else build_model(*given.values())


def _expect(widths: Sequence[int], parametrization: str, steps: int, seeds: int) -> None:
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
    if steps < 1 or seeds < 1:
        raise AnalyzerError(f"steps is {steps} and seeds is {seeds}; expected at least 1 of each.")


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


def _sizes(
    model: nn.Module,
    stepper: torch.optim.Optimizer,
    pairs: Sequence[tuple[Tensor, Tensor]],
    loss: Callable[[Any, Any], Tensor],
    steps: int,
) -> tuple[dict[_Key, float], dict[str, tuple[int, int]]]:
    """Return the root mean squares by quantity and layer, and fan-in and output size by layer."""
    inputs, targets = pairs[0]
    seen = layer_sizes(model, inputs, targets, loss, with_scores=True)
    # Other layers do what these make them.
    first = [one for one in seen if one.has_weights or isinstance(one.module, Scores)]
    roots = {one.name: math.sqrt(max(math.prod(one.shape), 1)) for one in first}
    values: dict[_Key, float] = {
        ("activation", 0, one.name): one.activation_norm / roots[one.name] for one in first
    }
    values |= {
        ("gradient", 0, one.name): (one.gradient_norm or 0.0) / roots[one.name] for one in first
    }
    for step in range(1, steps + 1):
        batch = pairs[(step - 1) % len(pairs)]
        stepper.zero_grad()
        loss(model(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]
        stepper.step()
        seen = layer_sizes(model, inputs, targets, loss, with_scores=True)
        after = {one.name: one.value for one in seen}
        for one in first:
            change = float((after[one.name] - one.value).double().norm())
            values["update", step, one.name] = change / roots[one.name]
    return values, {
        one.name: _SCORES
        if isinstance(one.module, Scores)
        else (one.fan_in, math.prod(one.shape[1:]))
        for one in first
    }


def _roles(shapes: dict[int, dict[str, tuple[int, int]]]) -> dict[str, str]:
    """Return the role of each layer, from what grows with width."""
    first, *others = shapes.values()
    if any(set(other) != set(first) for other in others):
        missing = set().union(*(set(first) ^ set(other) for other in others))
        raise AnalyzerError(
            f"the layers differ by width: {', '.join(sorted(missing)[:3])}; expected the same "
            "names at each. Let build_model change nothing but the width."
        )
    last = others[-1]

    def role(name: str) -> str:
        if last[name] == _SCORES:
            return "scores"
        if last[name][1] == first[name][1]:
            return "output"
        has_weight = bool(first[name][0])
        return "input" if has_weight and last[name][0] == first[name][0] else "hidden"

    return {name: role(name) for name in first}


def _expectations(
    parametrization: str, rule: str
) -> dict[tuple[str, int | None], dict[str, float]]:
    """Return the expected exponents by quantity, step (None: each), and role."""
    expected: dict[tuple[str, int | None], dict[str, float]] = {
        (quantity, None): by_role for quantity, by_role in _EXPECTED[parametrization].items()
    }
    if parametrization == "standard" and rule in _STANDARD_UPDATE:
        expected["update", 1] = _STANDARD_UPDATE[rule]
    return expected


def _growth(
    layer: str,
    role: str,
    quantity: str,
    step: int,
    depth: int | None,
    slopes: Sequence[float],
    expected: float | None,
    is_bound: bool,
) -> Growth:
    exponent = statistics.fmean(slopes)
    interval = interval_of(slopes)
    low, high = interval or (exponent, exponent)
    if expected is None or not math.isfinite(exponent):
        verdict = "not judged"
    elif high <= expected + _HALF_WAY and (is_bound or low >= expected - _HALF_WAY):
        verdict = "as expected"
    elif low > expected + _HALF_WAY or (high < expected - _HALF_WAY and not is_bound):
        verdict = "differs"
    else:
        verdict = "unclear"
    wanted = (expected, is_bound, verdict)
    return Growth(layer, role, quantity, step, depth, exponent, interval, *wanted)


def _short(value: float | None) -> str:
    """Return an exponent with two digits behind the point, and none that say nothing."""
    if value is None or not math.isfinite(value):
        return "?"
    return f"{round(value, 2) + 0.0:g}".replace("-", "−")
