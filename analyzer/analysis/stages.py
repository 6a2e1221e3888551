"""Stages of a network, as the names of its layers tell them."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["stage_borders"]

Floats = NDArray[np.float64]
_MOST_STAGES = 6


def stage_borders(names: tuple[str, ...], positions: Floats) -> tuple[tuple[float, str], ...]:
    """Return where a stage begins: where the first part of the layer names changes.

    Where every layer would be a stage of its own, or all are one, the parts that follow are looked
    at too. At most six are returned, evenly chosen.
    """
    for parts in (1, 2, 3):
        stages = [".".join(name.partition(" … ")[0].split(".")[:parts]) for name in names]
        borders = [at for at, stage in enumerate(stages) if not at or stage != stages[at - 1]]
        if len(borders) > 2:
            break
    if not borders:
        return ()
    chosen = np.unique(np.linspace(0, len(borders) - 1, min(_MOST_STAGES, len(borders))).round())
    return tuple((float(positions[borders[int(k)]]), stages[borders[int(k)]]) for k in chosen)
