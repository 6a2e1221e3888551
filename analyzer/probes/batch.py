"""What a probe gets and what it gives: a live model with one held batch, and a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

__all__ = ["HeldBatch", "Measurement"]


@dataclass(frozen=True)
class HeldBatch:
    """A live model and one batch of its training, between two steps.

    Args:
        model: The model; a probe leaves its weights, buffers, modes, ``.grad``, hooks and the
            random state as they are.
        inputs: The arguments of one call: a tuple of positional ones, a dict of keyword arguments,
            or one tensor (`analyzer.joins.find.call_arguments` takes them apart).
        targets: Second argument of `loss`; None where the loss holds its own targets.
        loss: ``loss(output, targets)``, the mean over the batch. For a recorded script it repeats
            the operations from the model's output to the root of the backward pass.
        labels: The class of each sample, where the batch has classes; None elsewhere.
    """

    model: nn.Module
    inputs: Any
    targets: Any
    loss: Callable[[Any, Any], Tensor]
    labels: Tensor | None = None


@dataclass(frozen=True)
class Measurement:
    """The table of one probe at one step.

    Args:
        columns: Values by column, all of one length, as `analyzer.storage.schema.PROBES` has them.
        metadata: What else must be known to read the table; stored in the file's metadata.
    """

    columns: Mapping[str, Sequence[Any]]
    metadata: Mapping[str, str] = field(default_factory=dict)
