"""Curvature against the step: the largest eigenvalue of the Hessian, and what a step bears."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.probes.hessian import Hessian, hessian_of
from analyzer.probes.lanczos import EigenPairs, end_eigenpairs

__all__ = ["UpdateRule", "measure", "rule_for", "update_rule"]

_TOLERANCE, _LOOSE = 1e-3, 1e-2
_MAX_STEPS = 24
_MOST_VECTORS = 20


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
    ours = settings[0]
    rate = ours["lr"]
    if not rate > 0 or ours.get("maximize"):
        return None
    if kind is torch.optim.SGD:
        beta = float(ours["momentum"])
        under = 1 + 2 * beta if ours["nesterov"] else 1 - float(ours["dampening"]) * bool(beta)
        return UpdateRule("SGD", rate, (2 + 2 * beta) / (rate * under) if under > 0 else None)
    if kind in (torch.optim.Adam, torch.optim.AdamW):
        beta, limit = float(ours["betas"][0]), (2 + 2 * float(ours["betas"][0])) / rate
        scales = None if rates else _scales(optimizer, lambda s, g: _of_adam(s, g))
        return UpdateRule(kind.__name__, rate, None, scales, limit / (1 - beta))
    if kind is torch.optim.RMSprop:
        limit = (2 + 2 * float(ours["momentum"])) / rate
        scales = None if rates else _scales(optimizer, lambda s, g: _of_rmsprop(s, g))
        return UpdateRule("RMSprop", rate, None, scales, limit)
    return None


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
    of the largest eigenvalue, at most 24 products with the Hessian. ``gradient_share`` is the part
    of ‖g‖² in the span of the largest eigenvectors, as many as classes in the batch (at most 20);
    null where they are not within 1e-2 of the largest by then. Dropout is off; batch norms that
    train normalize by the batch, and their statistics follow the weights. Of a training by small
    batches the Hessian of one of them is larger than that of the whole loss.
    """
    rule = batch.rule
    count = 1 if batch.labels is None else min(len(torch.unique(batch.labels)), _MOST_VECTORS)
    pairs = [(batch.inputs, batch.targets)]
    with hessian_of(batch.model, pairs, batch.loss, as_trained=True) as hessian:
        gradient = hessian.gradient()
        found = _largest(hessian.times, gradient, min(count, hessian.size), batch, "plain")
        share = None if batch.labels is None else _share(gradient, found)
        scaled = _preconditioned(hessian, gradient, batch)
    columns: dict[str, Sequence[Any]] = {
        "sharpness": [found.values[0]],
        "threshold": [None if rule is None else rule.threshold],
        "preconditioned_sharpness": [scaled],
        "preconditioned_threshold": [None if rule is None else rule.scaled_threshold],
        "gradient_share": [share],
        "num_eigenvectors": [None if share is None else len(found.values)],
    }
    notes = {
        "mode": "train" if batch.model.training else "eval",
        "error": repr(found.errors[0]),
        "optimizer": "" if rule is None else rule.name,
        "learning_rate": "" if rule is None else repr(rule.learning_rate),
    }
    return Measurement(columns, notes)


def _largest(
    product: Callable[[Tensor], Tensor], like: Tensor, count: int, batch: HeldBatch, key: str
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
        loose=_LOOSE,
        max_steps=_MAX_STEPS,
    )
    if math.isfinite(found.values[0]):
        batch.memory[key] = found.vectors.sum(0) / len(found.values) ** 0.5
    return found


def _share(gradient: Tensor, found: EigenPairs) -> float | None:
    """Which part of a gradient's square lies in the span of the largest eigenvectors.

    None for 0/0, and where one of them has not settled: what lies in a Krylov space is not that.
    """
    square = float(gradient.double().square().sum())
    if not square or not max(found.errors) <= _LOOSE * abs(found.values[0]):
        return None
    return float((found.vectors.double() @ gradient.double()).square().sum()) / square


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
