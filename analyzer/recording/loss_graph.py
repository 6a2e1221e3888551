"""What the graph of a loss tells: how samples are reduced, its sign, and what it is given."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["about_loss", "class_entropy", "class_targets", "reduction_of"]

_MOST_NODES = 64
_SAVED_REDUCTIONS = {1: "mean", 2: "sum"}
_OF_TERMS = ("Add", "Sub", "Neg", "ToCopy", "Squeeze", "Clone", "Alias", "View", "Reshape")
_MEASURES = {
    "NllLoss": "cross entropy",
    "MseLoss": "mean squared error",
    "SmoothL1Loss": "smooth L1 loss",
    "HuberLoss": "Huber loss",
}
# What takes outputs of any size and makes probabilities of them.
_TAKES_LOGITS = {
    "LogSoftmax": "cross entropy",
    "BinaryCrossEntropyWithLogits": "binary cross entropy with logits",
}
_SQUASHES = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
_VIEWS = (
    *("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Clone", "Alias", "ToCopy"),
    *("Transpose", "Permute", "TBackward", "Slice", "Select", "Expand", "Index"),
)
# Behind these stands the network.
_OF_LAYERS = ("Addmm", "Mm", "Bmm", "Convolution", "Native", "Embedding", "Cudnn", "Compiled")


def about_loss(roots: Sequence[Tensor], num_samples: int | None) -> dict[str, Any]:
    """Return what the graph of a loss tells, before its backward pass.

    ``reduction`` as of `reduction_of`; ``measure``, what it is, and ``sign``, −1 where it is minus
    that; ``given``, where its input was made probabilities before (``softmax``, ``sigmoid``), and
    ``taken_by``, what takes it for something else; ``axis``, over which a softmax goes, where that
    is not the one of the classes.
    """
    found: dict[str, Any] = {"reduction": reduction_of(roots, num_samples)}
    measures = {
        (name, sign)
        for node, sign in _terms(roots, behind_factors=True)
        for kind, name in _MEASURES.items()
        if node.name().startswith(kind)
    }
    if len({sign for _, sign in measures}) == 1:
        found["measure"], found["sign"] = min(measures)
    for node in _near(roots):
        found |= _input_of(node)
    return found


def _terms(roots: Sequence[Tensor], *, behind_factors: bool = False) -> list[tuple[Any, int]]:
    """The nodes that make the terms of a loss, behind sums and signs, and the sign of each.

    With ``behind_factors`` also behind products with a number.
    """
    found: list[tuple[Any, int]] = []
    stack: list[tuple[Any, int]] = [(root.grad_fn, 1) for root in roots]
    for _ in range(_MOST_NODES):
        if not stack:
            return found
        node, sign = stack.pop()
        if node is None:
            continue
        name = node.name()
        factor = _factor(node) if behind_factors else 0
        if not name.startswith(_OF_TERMS) and not factor:
            found.append((node, sign))
            continue
        sign *= factor or 1
        signs = (sign, -sign) if name.startswith("Sub") else (sign, sign)
        signs = (-sign, -sign) if name.startswith("Neg") else signs
        stack += [(one, s) for (one, _), s in zip(node.next_functions, signs, strict=False)]
    return found


def _factor(node: Any) -> int:
    """The sign of the number that a node multiplies by; 0 for anything else."""
    if not node.name().startswith(("Mul", "Div")) or node.next_functions[-1][0] is not None:
        return 0
    other = getattr(node, "_saved_other", None)
    if not isinstance(other, Tensor) or not other.is_cpu or other.numel() != 1:
        return 0
    value = float(other)
    return (value > 0) - (value < 0)


def _near(roots: Sequence[Tensor]) -> Iterator[Any]:
    """The first nodes behind a loss, up to the layers of the network."""
    waiting = [root.grad_fn for root in roots]
    seen = set()
    for _ in range(_MOST_NODES):
        if not waiting:
            return
        node = waiting.pop(0)
        if node is None or node in seen or node.name().startswith(_OF_LAYERS):
            continue
        seen.add(node)
        yield node
        waiting += [following for following, _ in node.next_functions]


def _behind(node: Any) -> tuple[Any, bool]:
    """The node that made the input of another, behind views, and whether there were any."""
    has_views = False
    node = node.next_functions[0][0] if node.next_functions else None
    for _ in range(_MOST_NODES):
        if node is None or not node.name().startswith(_VIEWS) or not node.next_functions:
            break
        node, has_views = node.next_functions[0][0], True
    return node, has_views


def _input_of(node: Any) -> dict[str, Any]:
    """What is wrong with what a node of a loss is given; nothing for most."""
    name = node.name()
    takes = next((words for kind, words in _TAKES_LOGITS.items() if name.startswith(kind)), None)
    is_likelihood = name.startswith("NllLoss")
    if takes is None and not is_likelihood:
        return {}
    before, has_views = _behind(node)
    if before is None:
        return {}
    squash = next((w for kind, w in _SQUASHES.items() if before.name().startswith(kind)), None)
    if squash is not None:
        return {"given": squash, "taken_by": takes or "negative log-likelihood"}
    if is_likelihood and before.name().startswith("Log"):
        if before.name().startswith("LogBackward"):
            before, more = _behind(before)
            has_views |= more
        return _axis_of(before, has_views)
    return {}


def _axis_of(node: Any, has_views: bool) -> dict[str, Any]:
    """The axis of a softmax, where it is not that of the classes."""
    if node is None or not node.name().startswith(("LogSoftmax", "Softmax")):
        return {}
    num_axes = len(node._input_metadata[0].shape)
    axis = node._saved_dim
    axis = (axis - 2**64 if axis >= 2**63 else axis) % max(num_axes, 1)
    is_wrong = num_axes > 1 and (axis == 0 or (axis != 1 and not has_views))
    return {"axis": axis} if is_wrong else {}


def reduction_of(roots: Sequence[Tensor], num_samples: int | None) -> str | None:
    """Return how a loss comes from the losses of its samples: ``mean`` or ``sum``.

    Args:
        roots: The loss, or several that are added.
        num_samples: Samples in the batch, where that is known: a sum over something else, such as
            the squares of the weights, is none over samples.

    Returns:
        None where its terms differ, or it cannot be seen, as in a sum that is divided or scaled.
    """
    found = set()
    for node, _ in _terms(roots):
        name = node.name()
        saved = _SAVED_REDUCTIONS.get(getattr(node, "_saved_reduction", 0))
        if saved is not None:
            found.add(saved)
        elif name.startswith("Mean"):
            found.add("mean")
        elif name.startswith("Sum"):
            sizes = getattr(node, "_saved_self_sym_sizes", ())
            if num_samples is None or num_samples in sizes:
                found.add("sum")
        elif name != "struct torch::autograd::AccumulateGrad":
            found.add("other")
    return found.pop() if len(found) == 1 and found <= {"mean", "sum"} else None


def class_targets(roots: Sequence[Tensor]) -> Any:
    """Return the node of the first term that is a cross entropy without weights; None without."""
    kinds = (node for node, _ in _terms(roots) if node.name().startswith("NllLoss"))
    return next((node for node in kinds if node._saved_weight is None), None)


def class_entropy(node: Any) -> Tensor:
    """Return ``−Σ p ln p`` in nats, of the shares p of the classes; on their device."""
    target, classes = node._saved_target.reshape(-1), node._saved_self.shape[1]
    counted = (target != node._saved_ignore_index).float()
    counts = torch.zeros(classes, device=target.device)
    counts.index_add_(0, target.clamp(0, classes - 1), counted)
    shares = counts / counts.sum()
    return -(shares * shares.clamp_min(torch.finfo(torch.float32).tiny).log()).sum()
