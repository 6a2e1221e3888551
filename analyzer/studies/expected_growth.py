"""How sizes grow with width by theory: for each parametrization, rule of updates and role."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

__all__ = [
    "PARAMETRIZATIONS",
    "Expected",
    "Part",
    "expected_growth",
    "roles_of",
    "rule_of",
    "usual_gradient",
]

PARAMETRIZATIONS = ("standard", "maximal-update")
# By layer and parameter, with an empty name for the layer as a whole.
Parts = Mapping[tuple[str, str], "Part"]

# Sizes by role, per element. A vector is a bias or a gain whose length grows.
_NOMINAL: dict[str, dict[str, dict[str, float]]] = {
    "maximal-update": {
        "activation": {"input": 0.0, "hidden": 0.0, "output": -0.5, "vector": 0.0, "fixed": 0.0},
        "gradient": {"input": -1.0, "hidden": -1.0, "vector": -1.0, "output": 0.0, "fixed": 0.0},
        "update": dict.fromkeys(("input", "hidden", "output", "vector", "fixed", "scores"), 0.0),
    },
    "standard": {
        "activation": dict.fromkeys(("input", "hidden", "output", "vector", "fixed"), 0.0),
        "gradient": {"input": -0.5, "hidden": -0.5, "vector": -0.5, "output": 0.0, "fixed": 0.0},
    },
}
# One learning rate for all layers: how far the first step of each parameter moves the output.
_STANDARD_UPDATE = {
    "SGD": {"input": -0.5, "hidden": 0.5, "output": 1.0, "vector": -0.5, "fixed": 0.0},
    "Adam": {"input": 0.0, "hidden": 1.0, "output": 1.0, "vector": 0.0, "fixed": 0.0},
}
# Their first step has one length for every element of the gradient.
_LIKE_ADAM = (
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.Adamax,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
)


@dataclass(frozen=True)
class Part:
    """A layer, or one parameter of it, at one width.

    Args:
        outputs: Numbers in the output of the layer.
        elements: Those of the parameter; of a layer those of its largest weight, 0 without one.
        is_vector: Whether it is a bias or a gain, or the layer has nothing else.
        is_affine: Whether the output is an affine function of the parameter.
        reads_input: Whether its part of the output is proportional to the input.
        identity: Equal for one parameter under several names, at one width.
        is_scores: Whether it stands for what a softmax is given.
    """

    outputs: int
    elements: int
    is_vector: bool
    is_affine: bool = True
    reads_input: bool = False
    identity: int = 0
    is_scores: bool = False


@dataclass(frozen=True)
class Expected:
    """What is expected of an exponent: at most ``highest``, at least ``lowest``, if there is one.

    Args:
        highest: None where nothing is expected.
        lowest: Equal to ``highest`` for one value; None where less is no fault.
        reason: Why nothing is expected.
    """

    highest: float | None = None
    lowest: float | None = None
    reason: str = ""


def rule_of(optimizer: torch.optim.Optimizer) -> str:
    """Return the rule whose first step an optimizer makes: ``SGD``, ``Adam``, or its own name."""
    if isinstance(optimizer, torch.optim.SGD):
        return "SGD"
    return "Adam" if isinstance(optimizer, _LIKE_ADAM) else type(optimizer).__name__


def usual_gradient(parametrization: str, role: str) -> float:
    """Return the expected exponent of ∂L/∂y of a layer; 0 where there is none."""
    return _NOMINAL[parametrization]["gradient"].get(role, 0.0)


def roles_of(first: Parts, last: Parts, growth: float) -> dict[tuple[str, str], str]:
    """Return the role of each layer and parameter from its sizes at two widths.

    Args:
        first: Those of the smaller width.
        last: Those of the larger one.
        growth: The larger width over the smaller.

    Returns:
        ``input`` (the output grows, the fan-in does not), ``hidden`` (both grow), ``output`` (the
        fan-in alone), ``fixed`` (neither), ``vector`` (a bias or gain whose length grows),
        ``scores``; empty where a size grows otherwise than as the width.
    """

    def power(small: float, large: float) -> int | None:
        exponent = math.log(large / small) / math.log(growth)
        return round(exponent) if abs(exponent - round(exponent)) < 0.3 else None

    def role(one: Part, other: Part) -> str:
        if one.is_scores:
            return "scores"
        outputs = power(one.outputs, other.outputs)
        if one.is_vector and outputs == 1:
            return "vector"
        reads = (one.elements or one.outputs) / one.outputs
        fan_in = power(reads, (other.elements or other.outputs) / other.outputs)
        names = {(1, 0): "input", (1, 1): "hidden", (0, 1): "output", (0, 0): "fixed"}
        return (
            names.get((outputs, fan_in), "") if outputs is not None and fan_in is not None else ""
        )

    return {key: role(part, last[key]) for key, part in first.items()}


def expected_growth(
    parametrization: str,
    rule: str,
    quantity: str,
    role: str,
    *,
    is_affine: bool = True,
    is_tied: bool = False,
    is_inner: bool = False,
    is_behind_inner: bool = False,
    of_biases: float = 0.0,
    of_alignment: float = 0.0,
) -> Expected:
    """Return what is expected of the exponent of one size.

    Args:
        parametrization: One of `PARAMETRIZATIONS`.
        rule: That of the optimizer, as `rule_of` has it.
        quantity: ``own activation``, ``activation``, ``gradient``, ``own update`` or ``update``;
            the own ones are of a parameter.
        role: That of the layer or parameter, as `roles_of` has it.
        is_affine: Whether the output of the layer is an affine function of the parameter.
        is_tied: Whether a weight of it is that of a layer of another role, too.
        is_inner: Whether it is an ``output`` layer inside of the network: one that grows follows.
        is_behind_inner: Whether it is one, or is called after one.
        of_biases: The smallest exponent among the biases so far: a sum of a weight's part and a
            bias that falls has an exponent between theirs.
        of_alignment: The exponent of the part that inputs have in common, twice: an update by all
            samples has it where they act together, and not where each acts on itself alone.
    """
    is_maximal = parametrization == "maximal-update"
    kind = quantity.removeprefix("own ")
    is_own = kind != quantity
    if not role:
        return Expected(reason="a size of it does not grow as a power of the width")
    if is_own and not is_affine:
        if is_maximal and kind == "update":
            return Expected(0.0)
        return Expected(reason="the output is not linear in it")
    sizes = _NOMINAL[parametrization].get(kind, {})
    if kind == "update" and not is_maximal:
        if not is_own:
            return Expected(reason="it adds up several powers of the width")
        if rule not in _STANDARD_UPDATE:
            return Expected(reason=f"nothing is known of {rule}")
        if is_tied and rule == "SGD":
            return Expected(reason="it is tied to a layer of another role")
        sizes = _STANDARD_UPDATE[rule]
    if role not in sizes:
        return Expected(reason="its update is judged")
    if is_tied and kind == "gradient" and not is_maximal:
        return Expected(reason="it is tied to a layer of another role")
    highest = sizes[role]
    is_bound = (
        (is_maximal and (kind == "gradient" or quantity == "update" or role == "fixed"))
        or (is_own and role in ("vector", "fixed"))
        or (is_tied and kind == "activation")
        or (is_maximal and is_behind_inner)
    )
    if kind == "activation" and (is_tied or is_inner):
        highest = 0.0
    if is_bound:
        return Expected(highest)
    less = {"activation": of_biases, "own update": of_alignment}.get(quantity, 0.0)
    return Expected(highest, highest + min(0.0, less))
