"""What a network loses when one branch or shortcut is left out, or two blocks trade places."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from analyzer.joins.calls import tensors_in
from analyzer.joins.edits import Edit, JoinOperands
from analyzer.joins.find import call_arguments
from analyzer.joins.model_state import check_loss
from analyzer.joins.rerun import Rerun
from analyzer.joins.search import Join
from analyzer.probes.activations import as_it_trains
from analyzer.probes.batch import HeldBatch, Measurement

__all__ = ["measure"]


class Evaluation(NamedTuple):
    """How good an output is: its loss, and its accuracy where there are classes."""

    loss: float
    accuracy: float | None


class _Without(Edit):
    """The branch, or the shortcut, of one join replaced by zeros."""

    def __init__(self, join: int, side: str) -> None:
        self._join, self._is_branch = join, side == "branch"

    def factor(self, place: JoinOperands, slot: int, operand: Tensor) -> float:
        is_cut = place.join.index == self._join and (slot in place.branches) == self._is_branch
        return 0.0 if is_cut else 1.0


def measure(batch: HeldBatch) -> Measurement:
    """Leave out each residual branch, one at a time; let like blocks that follow trade places.

    Leave out each shortcut likewise. See `analyzer.lesion_study`. ``loss_change`` is near 0 where
    the network does without the branch, as in residual networks; large where it does not, as at a
    change of size. In the
    metadata are ``loss`` and ``accuracy`` of the whole network, and ``permutations``: JSON, one
    object for each two neighboring blocks of one shape that were swapped.
    """
    with as_it_trains(batch.model, batch.inputs) as notes:
        return _measured(batch, notes)


def _measured(batch: HeldBatch, notes: dict[str, str]) -> Measurement:
    args, kwargs = call_arguments(batch.inputs)
    rerun = Rerun(batch.model, args, kwargs, in_eval=True)
    whole = _score_of(rerun.run(), batch)
    branches, shortcuts = (
        [_score_of(rerun.run([_Without(join.index, side)]), batch) for join in rerun.joins]
        for side in ("branch", "shortcut")
    )
    swaps = [
        {
            "blocks": list(blocks),
            "loss": score.loss,
            "loss_change": score.loss - whole.loss,
            "accuracy": score.accuracy,
        }
        for blocks, score in _swap_scores(rerun, batch)
    ]
    metadata = {
        **notes,
        "loss": json.dumps(whole.loss),
        "accuracy": json.dumps(whole.accuracy),
        "permutations": json.dumps(swaps),
    }
    columns: dict[str, list[Any]] = {"join": [join.index for join in rerun.joins]}
    for prefix, scores in (("", branches), ("shortcut_", shortcuts)):
        columns[f"{prefix}loss"] = [score.loss for score in scores]
        columns[f"{prefix}loss_change"] = [score.loss - whole.loss for score in scores]
        columns[f"{prefix}accuracy"] = [score.accuracy for score in scores]
    return Measurement(columns, metadata)


def _swap_scores(rerun: Rerun, batch: HeldBatch) -> list[tuple[tuple[str, str], Evaluation]]:
    """Return for each two neighboring blocks of one shape the score with the two swapped."""
    found = []
    for blocks in _block_swaps(rerun.model, rerun.joins):
        state = dict(_swapped(rerun.model, *blocks))

        def call(*args: Any, state: dict[str, Tensor] = state, **kwargs: Any) -> Any:
            return functional_call(rerun.model, state, args, kwargs)

        found.append((blocks, _score_of(rerun.run(call=call), batch)))
    return found


def _block_swaps(model: nn.Module, joins: list[Join]) -> list[tuple[str, str]]:
    """Return neighboring blocks with joins: of one class, with parameters of one shape each."""
    names = list(dict.fromkeys(join.name.partition("#")[0] for join in joins))
    modules = dict(model.named_modules())
    blocks = [name for name in names if name and name in modules]
    return [
        (one, other)
        for one, other in pairwise(blocks)
        if one.rpartition(".")[0] == other.rpartition(".")[0]
        and type(modules[one]) is type(modules[other])
        and _shapes(modules[one]) == _shapes(modules[other])
    ]


def _shapes(module: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in _state(module)]


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _swapped(model: nn.Module, one: str, other: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of two blocks, each under the other's name."""
    for source, target in ((one, other), (other, one)):
        for name, tensor in _state(model.get_submodule(source)):
            yield f"{target}.{name}", tensor


def _score_of(output: Any, batch: HeldBatch) -> Evaluation:
    """Return loss and accuracy of an output; the loss is kept where it is not finite.

    Accuracy is the share of samples whose largest score is that of their class: of ``labels``, or
    of targets that are one whole number a sample. None where the output is not ``[batch, classes]``
    or there are no classes.
    """
    check_loss(batch.loss)
    with torch.no_grad():
        loss = float(batch.loss(output, batch.targets))
        scores = next((t for t in tensors_in(output) if t.is_floating_point()), None)
        labels = batch.targets if batch.labels is None else batch.labels
        if scores is None or not _are_classes(labels, scores):
            return Evaluation(loss, None)
        return Evaluation(loss, float((scores.argmax(1) == labels).double().mean()))


def _are_classes(labels: Any, scores: Tensor) -> bool:
    if not isinstance(labels, Tensor) or scores.dim() != 2 or labels.shape != scores.shape[:1]:
        return False
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
