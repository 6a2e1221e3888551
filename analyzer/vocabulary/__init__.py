"""Every recorded quantity and every probe: one row each, from which everything else derives.

The layout of a run folder, how rows are written and pooled, the pages of the documentation, labels
and pickers follow from these rows. Nothing heavy is imported here.
"""

from analyzer.vocabulary.glossary import GLOSSARY
from analyzer.vocabulary.probes import PROBE_NAMES, PROBES, Probe, ProbeOption
from analyzer.vocabulary.quantities import QUANTITIES
from analyzer.vocabulary.quantity import RULES, Pooling, Quantity

__all__ = [
    "GLOSSARY",
    "PROBES",
    "PROBE_NAMES",
    "QUANTITIES",
    "RULES",
    "Pooling",
    "Probe",
    "ProbeOption",
    "Quantity",
    "quantities_of",
    "quantity",
]

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


def quantities_of(table: str) -> tuple[Quantity, ...]:
    """Return the quantities of a table in the order of its columns; none of an unknown table."""
    return tuple(row for row in _BY_PLACE.values() if row.table == table)
