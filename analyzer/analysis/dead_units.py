"""Units that are zero for every sample, counted per layer."""

from collections.abc import Sequence
from dataclasses import dataclass

from analyzer.storage.run import Run

__all__ = ["DeadUnits", "dead_units", "num_units"]

_CHANNEL_FIRST = ("Conv1d", "BatchNorm", "GroupNorm", "InstanceNorm", "LocalResponseNorm")


@dataclass(frozen=True)
class DeadUnits:
    """Dead units of one layer at one step.

    Args:
        layer: Row of the table of layers.
        name: Its name.
        num_dead: Units whose activation is zero for every sample of the pooled step.
        num_units: Channels or features of the layer; None where its shape does not say.
    """

    layer: int
    name: str
    num_dead: int
    num_units: int | None

    @property
    def fraction(self) -> float:
        """Dead units over all units; NaN where the number of units is unknown or zero."""
        return self.num_dead / self.num_units if self.num_units else float("nan")


def num_units(kind: str, shape: Sequence[int] | None) -> int | None:
    """Return the number of units of an output: channels of images and convolutions, else features.

    Args:
        kind: Class name of the module.
        shape: Shape of its output, batch first; None where it is not a single tensor.

    Returns:
        The size of axis 1 with 4 or more axes, or where the kind puts channels there; else of the
        last axis. None with fewer than 2 axes, where there is no unit axis.
    """
    if shape is None or len(shape) < 2:
        return None
    channels_first = len(shape) > 3 or kind.startswith(_CHANNEL_FIRST)
    return int(shape[1] if channels_first else shape[-1])


def dead_units(run: Run, step: int) -> list[DeadUnits]:
    """Return the dead units of every layer that has units, in call order.

    Args:
        run: An opened run.
        step: A recorded step.

    Returns:
        One row per layer whose ``activation_num_dead`` is not null, zeros included.
    """
    stats = run.read("layer_stats", "activation_num_dead", steps=step)
    ids, values = (stats.column(c).to_pylist() for c in ("layer", "activation_num_dead"))
    counted = {i: v for i, v in zip(ids, values, strict=True) if v is not None}
    rows = run.layers[["layer", "name", "kind", "output_shape"]].itertuples(index=False)
    return [
        DeadUnits(layer, name, counted[layer], num_units(kind, shape))
        for layer, name, kind, shape in rows
        if layer in counted
    ]
