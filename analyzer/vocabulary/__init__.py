"""Every recorded quantity, probe and term: one row each, from which everything else derives.

The layout of a run folder, how rows are written and pooled, the pages of the documentation, labels
and pickers follow from these rows. Nothing heavy is imported here.
"""

from functools import cache

from analyzer.vocabulary.probes import PROBES
from analyzer.vocabulary.quantities import QUANTITIES, RULES, Pooling, Quantity

__all__ = ["GLOSSARY", "QUANTITIES", "RULES", "Pooling", "Quantity", "quantities_of", "quantity"]

GLOSSARY = {
    "run": "One recorded execution of a training script, stored in one folder.",
    "layer": "One call of a module without submodules, or of one that owns parameters itself; a "
    "ReLU used twice in a forward pass is two layers.",
    "decade": "A factor of ten: a value that falls by 12 decades becomes 10¹² times smaller.",
    "gain": "The factor by which the norm of the output gradient changes per layer on its way from "
    "output to input, fitted over all layers: 1 preserves it, 0.5 halves it.",
    "join": "A place where a shortcut and a residual branch that start from the same tensor, the "
    "fork, meet again, by a sum or a concatenation.",
    "residual stream": "What a residual network hands on from block to block; at each join a block "
    "adds to it.",
    "split": "The gradient that arrives at a fork, separated exactly into what came through the "
    "shortcut and what came through the branch.",
    "shortcut share": "The part of the gradient at a fork that came through the shortcut; above "
    "100 % where the branch cancels some of it.",
    "held batch": "One batch of inputs that is kept, so that each measurement sees the same "
    "samples.",
    "probe": "A heavier measurement on the live model and one held batch, at chosen steps.",
    "twin": "The same program, recorded once more with every shortcut multiplied by 0.",
    "lesion": "One branch of a trained network is taken out and nothing else is changed (an "
    "ablation), to see how much worse the network becomes.",
    "Jacobian": "The matrix of the derivatives of a network's outputs by its inputs.",
    "condition number": "The largest singular value of a matrix over its smallest: 1 passes all "
    "directions on alike.",
    "sharpness": "The largest eigenvalue of the Hessian, the second derivatives of the loss: how "
    "strongly the loss curves in its steepest direction.",
    "edge of stability": "A sharpness of about 2 over the learning rate, above which gradient "
    "descent overshoots in the steepest direction.",
}
"""A short definition of each term, in an order in which none is used before it is defined."""

_BY_PLACE = {
    (row.table, row.key): row
    for row in (*QUANTITIES, *(column for probe in PROBES for column in probe.columns))
}


def quantity(key: str, table: str | None = None) -> Quantity:
    """Return the quantity of a column.

    Args:
        key: Name of the column.
        table: Its table, such as ``parameter_stats`` or ``probes/paths``; None for the first of
            the recorded tables that has such a column.

    Raises:
        KeyError: If no quantity has this key.
    """
    if table is not None:
        return _BY_PLACE[table, key]
    for row in QUANTITIES:
        if row.key == key:
            return row
    raise KeyError(key)


@cache
def quantities_of(table: str) -> tuple[Quantity, ...]:
    """Return the quantities of a table in the order of its columns; none of an unknown table."""
    return tuple(row for row in _BY_PLACE.values() if row.table == table)
