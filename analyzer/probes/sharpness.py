"""Curvature against the step: the largest eigenvalue of the Hessian, and what a step bears."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.probes.hessian import Hessian, hessian_of
from analyzer.probes.lanczos import EigenPairs, end_eigenpairs

__all__ = ["UpdateRule", "measure", "rule_for", "rule_of", "update_rule"]

_TOLERANCE = 1e-3
_MOST_VECTORS = 20
# Products with the Hessian: 24 for the largest eigenvalue, more for the others where they are
# cheap. What a gradient's graph holds tells that, on every machine alike: of a ResNet-20 on 64
# digits it is 23 MiB, and a second of one core pays for 20 products.
_MAX_STEPS, _MOST_STEPS, _BYTES = 24, 96, 480 << 20
_NARROW, _KNOWN_SHARE = 0.02, 0.1
_KNOWN = ("SGD", "Adam", "AdamW", "RMSprop")


@dataclass(frozen=True)
class UpdateRule:
    """How an optimizer moves the weights, as far as stability depends on it.

    Args:
        name: Class of the optimizer.
        threshold: Sharpness above which it diverges on a quadratic; None for an optimizer with a
            preconditioner, or that is not known.
        scales: The preconditioner P, a diagonal, by the ``id`` of the parameter.
        scaled_threshold: The same of ``λ₁(P⁻¹ H)``.
    """

    name: str
    learning_rate: float
    threshold: float | None = None
    scales: Mapping[int, Tensor] | None = None
    scaled_threshold: float | None = None


def rule_for(
    model: nn.Module, optimizers: Iterable[Any], rates: Mapping[Any, Any] | None
) -> UpdateRule | None:
    """Return the rule of the one optimizer that steps a model; None where there are several.

    ``rates`` are the learning rates, by ``(id, group)``, of an update that has been made; then what
    is asked for is its rule before it, without a state. None for the next update.
    """
    held = {id(parameter) for parameter in model.parameters()}
    own = [
        optimizer
        for optimizer in optimizers
        if any(id(p) in held for group in optimizer.param_groups for p in group["params"])
    ]
    return update_rule(own[0], rates) if len(own) == 1 else None


def update_rule(optimizer: Any, rates: Mapping[Any, Any] | None = None) -> UpdateRule | None:
    """Return where an optimizer becomes unstable on a quadratic.

    - gradient descent: ``λ₁(H) < 2 / η``;
    - heavy ball β: ``(2 + 2β) / η``, over ``1 − τ`` for a dampening τ; Nesterov ``(2 + 2β) / ((1 +
      2β) η)``;
    - Adam, AdamW: ``λ₁(P⁻¹H) < (2 + 2β₁) / ((1 − β₁) η)`` with ``P = (1 − β₁ᵗ)(√(v / (1 − β₂ᵗ)) +
      ε)`` of its state after t updates; RMSprop: ``(2 + 2β) / η`` with ``P = √v + ε``.

    None for others, for groups that differ, and for an ascent.

    Reference:
        Cohen et al. (2021), Gradient descent on neural networks typically occurs at the edge of
        stability, appendix B; Cohen et al. (2022), Adaptive gradient methods at the edge of
        stability, section 2.
    """
    kind, groups = type(optimizer), optimizer.param_groups
    known = rates or {}
    settings = [
        {
            **{key: value for key, value in group.items() if key != "params"},
            "lr": float(known.get((id(optimizer), place), group["lr"])),
        }
        for place, group in enumerate(groups)
    ]
    names = ("lr", "momentum", "nesterov", "dampening", "betas", "eps", "maximize", "amsgrad")
    if not settings or any(s.get(n) != settings[0].get(n) for s in settings for n in names):
        return None
    if not any(kind is getattr(torch.optim, name) for name in _KNOWN):
        return None
    scales = None
    if not rates and kind is not torch.optim.SGD:
        scales = _scales(optimizer, _of_rmsprop if kind is torch.optim.RMSprop else _of_adam)
    return rule_of(kind.__name__, settings[0], scales)


def rule_of(
    name: str, settings: Mapping[str, Any], scales: Mapping[int, Tensor] | None = None
) -> UpdateRule | None:
    """Return the rule of an optimizer by its class and settings; what is missing is off."""
    rate, momentum = float(settings["lr"]), float(settings.get("momentum") or 0)
    if name not in _KNOWN or not rate > 0 or settings.get("maximize"):
        return None
    if name == "SGD":
        damping = float(settings.get("dampening") or 0) * bool(momentum)
        under = 1 + 2 * momentum if settings.get("nesterov") else 1 - damping
        threshold = (2 + 2 * momentum) / (rate * under) if under > 0 else None
        return UpdateRule(name, rate, threshold)
    if name == "RMSprop":
        return UpdateRule(name, rate, None, scales, (2 + 2 * momentum) / rate)
    beta = float(settings["betas"][0])
    return UpdateRule(name, rate, None, scales, (2 + 2 * beta) / ((1 - beta) * rate))


def _scales(
    optimizer: Any, scale: Callable[[Mapping[str, Any], Mapping[str, Any]], Tensor]
) -> dict[int, Tensor] | None:
    """The preconditioner of each parameter that has been stepped; None before the first."""
    return {
        id(parameter): scale(optimizer.state[parameter], group)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if optimizer.state.get(parameter)
    } or None


def _of_adam(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    (first, second), count = group["betas"], float(state["step"])
    squares = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    scale: Tensor = ((squares / (1 - second**count)).sqrt() + group["eps"]) * (1 - first**count)
    return scale


def _of_rmsprop(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    squares = state["square_avg"]
    if group["centered"]:
        squares = squares - state["grad_avg"].square()
    scale: Tensor = squares.sqrt() + group["eps"]
    return scale


def measure(batch: HeldBatch) -> Measurement:
    """Measure the sharpness on a held batch, and how far it is from what its optimizer bears.

    Lanczos, warm-started from the vectors of the measurement before and the gradient, within 1e-3
    of the largest eigenvalue, at most 24 products with the Hessian (96 where they are cheap).
    ``gradient_share`` is the part of ‖g‖² in the span of the ``num_eigenvectors`` largest
    eigenvectors, as many as classes in the batch (at most 20). Where some of these have not settled
    by then it lies between what the settled ones hold and what all of them hold together with what
    lies outside of the basis; both ends are in the metadata. It is their middle where they are at
    most 0.1 apart, else that of the settled ones alone, which are then fewer; null without classes.

    Dropout is off; batch norms that train normalize by the batch, and their statistics follow the
    weights. Of a training by small batches the Hessian of one of them is larger than that of the
    whole loss.
    """
    rule = batch.rule
    count = 1 if batch.labels is None else min(len(torch.unique(batch.labels)), _MOST_VECTORS)
    pairs = [(batch.inputs, batch.targets)]
    with hessian_of(batch.model, pairs, batch.loss, as_trained=True) as hessian:
        gradient = hessian.gradient()
        affordable = min(_BYTES // max(hessian.graph_bytes, 1), _MOST_STEPS)

        def is_enough(found: EigenPairs) -> bool:
            low, high, _ = _share(gradient, found)
            return len(found.basis) + 4 > affordable or not high - low > _NARROW

        count = min(count, hessian.size)
        enough = None if count == 1 else is_enough
        found = _largest(hessian.times, gradient, count, batch, "plain", enough, affordable)
        scaled = _preconditioned(hessian, gradient, batch)
    low, high, settled = _share(gradient, found)
    share, held = (low + high) / 2, len(found.values)
    if not high - low <= _KNOWN_SHARE:
        share, held = low, settled
    is_known = batch.labels is not None and held > 0
    columns: dict[str, Sequence[Any]] = {
        "sharpness": [found.values[0]],
        "threshold": [None if rule is None else rule.threshold],
        "preconditioned_sharpness": [scaled],
        "preconditioned_threshold": [None if rule is None else rule.scaled_threshold],
        "gradient_share": [share if is_known else None],
        "num_eigenvectors": [held if is_known else None],
    }
    notes = {
        "mode": "train" if batch.model.training else "eval",
        "error": repr(found.errors[0]),
        "num_products": str(len(found.basis)),
        "gradient_share_ends": json.dumps([low, high]) if low <= high else "",
        "optimizer": "" if rule is None else rule.name,
        "learning_rate": "" if rule is None else repr(rule.learning_rate),
    }
    return Measurement(columns, notes)


def _largest(
    product: Callable[[Tensor], Tensor],
    like: Tensor,
    count: int,
    batch: HeldBatch,
    key: str,
    enough: Callable[[EigenPairs], bool] | None = None,
    max_steps: int = 0,
) -> EigenPairs:
    known, start = batch.memory.get(key), like
    if known is not None and known.shape == like.shape and (length := float(like.norm())) > 0:
        start = like / length + known
    found = end_eigenpairs(
        product,
        like,
        largest=count,
        start=start,
        tolerance=_TOLERANCE,
        enough=enough,
        max_steps=max(_MAX_STEPS, max_steps),
    )
    if math.isfinite(found.values[0]):
        batch.memory[key] = found.vectors.sum(0) / len(found.values) ** 0.5
    return found


def _share(gradient: Tensor, found: EigenPairs) -> tuple[float, float, int]:
    """Between which ends the share of ``‖g‖²`` in the largest eigenvectors lies; NaN for 0/0.

    And how many of them have settled, one after the other from the largest.

    What the settled ones hold is a part of it. Of the others the span in the basis holds too much
    as yet: its values are smaller than the eigenvalues, so that more of the gradient lies above.
    """
    direction = gradient.double()
    square = float(direction.square().sum())
    if not square or not math.isfinite(found.values[0]):
        return math.nan, math.nan, 0
    parts = ((found.vectors.double() @ direction).square() / square).tolist()
    limit = _TOLERANCE * abs(found.values[0])
    settled = next((k for k, e in enumerate(found.errors) if not e <= limit), len(parts))
    if settled == len(parts):
        return sum(parts), sum(parts), settled
    inside = float((found.basis.double() @ direction).square().sum()) / square
    return sum(parts[:settled]), min(1.0, sum(parts) + max(0.0, 1 - inside)), settled


def _preconditioned(hessian: Hessian, gradient: Tensor, batch: HeldBatch) -> float | None:
    """``λ₁(P⁻¹H)``, as that of the symmetric ``P^{−1/2} H P^{−1/2}``; None without a P of all."""
    scales = None if batch.rule is None else batch.rule.scales
    own = [] if scales is None else [scales.get(id(p)) for p in hessian.parameters.values()]
    parts = [scale for scale in own if scale is not None]
    if not own or len(parts) < len(own):
        return None
    roots = torch.cat([part.detach().flatten().to(gradient) for part in parts]).rsqrt()
    return _largest(
        lambda v: roots * hessian.times(roots * v), roots * gradient, 1, batch, "scaled"
    ).values[0]
