"""The layout of a run folder: tables, columns, types, units and meanings, from the vocabulary."""

import pyarrow as pa

from analyzer.vocabulary import quantities_of
from analyzer.vocabulary.probes import PROBES as PROBE_ROWS

__all__ = [
    "CONSTANT_COLUMNS",
    "EDGES",
    "PROBES",
    "READABLE_VERSIONS",
    "SCHEMA_VERSION",
    "SHARE",
    "STATIC_TABLES",
    "STAT_COLUMNS",
    "STEP_TABLES",
    "TABLES",
    "is_logged",
    "key_column",
]

# 1: first layout.
# 2: forward columns of splits, shortcuts in probes/lesion, probes/counterfactual, edges.
SCHEMA_VERSION = 2
READABLE_VERSIONS = range(1, SCHEMA_VERSION + 1)


_TYPES = {
    "list<int64>": pa.list_(pa.int64()),
    "list<string>": pa.list_(pa.string()),
    "time": pa.timestamp("us", tz="UTC"),
}
_Column = tuple[str, str, str, str]
"""Name, type (with ``?`` where it may be null), unit and meaning."""


def _field(name: str, type_: str, unit: str, meaning: str) -> pa.Field:
    word = type_.removesuffix("?")
    arrow = _TYPES.get(word) or pa.type_for_alias(word)
    return pa.field(name, arrow, word != type_, {"unit": unit, "description": meaning})


def _schema(*columns: _Column) -> pa.Schema:
    fields = [_field(*column) for column in columns]
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


def _quantities(table: str) -> list[_Column]:
    return [(row.key, f"{row.type}?", row.unit, row.description) for row in quantities_of(table)]


_STEP: _Column = ("step", "int64", "steps", "Attempted updates before this one.")
_RANK: _Column = ("rank", "int16", "", "Process that wrote the row.")
_LAYERS = (
    ("layer", "int32", "", "Number of the layer, in call order."),
    ("name", "string", "", "Module path, with #k for call k > 0, #rest for later ones."),
    ("module", "string", "", "Module path; the class name for the root."),
    ("call", "int32", "", "Call since the previous backward pass ended; of #rest the first."),
    ("kind", "string", "", "Class name of the module."),
    ("depth", "int32", "layers", "Layers on the longest path from the input to this one."),
    (
        "num_parameters",
        "int64",
        "elements",
        "Elements of the parameters that the module owns directly.",
    ),
    ("output_shape", "list<int64>?", "", "Shape of the output when it was first seen."),
    ("join", "int32?", "", "Innermost residual join that the layer is a part of."),
    ("role", "string?", "", "branch or shortcut of that join."),
)
_PARAMETERS = (
    ("parameter", "int32", "", "Number of the parameter."),
    ("name", "string", "", "Name in named_parameters()."),
    ("layer", "int32?", "", "First layer that uses it; null where none was called."),
    ("shape", "list<int64>", "", "Global shape."),
    ("num_elements", "int64", "elements", "Global number of elements."),
    (
        "trained",
        "bool",
        "",
        "Whether it wants a gradient and an optimizer (where there is one) holds it.",
    ),
    ("placement", "string", "", "replicated or sharded over the ranks."),
)
_JOINS = (
    ("join", "int32", "", "Number of the join, in forward order."),
    ("name", "string", "", "Innermost module that holds fork and join."),
    ("operation", "string", "", "add or cat."),
    ("shortcut", "string", "", "identity, scaled, gated, projection or concat."),
    ("branch_layers", "list<string>", "", "Layers of the branch, in forward order."),
    ("shortcut_layers", "list<string>", "", "Layers of the shortcut, in forward order."),
    ("branch_parameters", "int64", "elements", "Parameters of the branch."),
    ("shortcut_parameters", "int64", "elements", "Parameters of the shortcut."),
)
_EDGES = (
    ("source", "int32", "", "Layer whose output is read; -1 for an input of the network."),
    ("target", "int32", "", "Layer that reads it, past no other layer."),
)


def _step_table(table: str, key: str, meaning: str) -> pa.Schema:
    return _schema(_STEP, _RANK, (key, "int32", "", meaning), *_quantities(table))


STAT_COLUMNS: dict[str, tuple[str, ...]] = {
    table: tuple(row.key for row in quantities_of(table))
    for table in ("layer_stats", "parameter_stats", "splits")
}
CONSTANT_COLUMNS = ("step", "rank", "attempt")
SHARE = "gradient_norm_share"
"""What a rank that holds a part of the weights adds to ``gradient_norm``: a root of squares."""
STATIC_TABLES = ("layers", "parameters", "joins")
EDGES = "edges"
"""The static table that has no ids of its own: the data flow between layers."""
STEP_TABLES = ("steps", *STAT_COLUMNS)
TABLES: dict[str, pa.Schema] = {
    "layers": _schema(*_LAYERS),
    "parameters": _schema(*_PARAMETERS),
    "joins": _schema(*_JOINS),
    EDGES: _schema(*_EDGES),
    "steps": _schema(
        _STEP,
        _RANK,
        ("attempt", "int16", "", "Counts restarts of the same training."),
        ("epoch", "int32?", "", "Epoch, where the training says it."),
        *_quantities("steps"),
        ("time", "time?", "", "When the step ended."),
    ),
    "layer_stats": _step_table("layer_stats", "layer", "Row of layers.parquet."),
    "parameter_stats": _step_table("parameter_stats", "parameter", "Row of parameters.parquet."),
    "splits": _step_table("splits", "join", "Row of joins.parquet."),
}
PROBES: dict[str, pa.Schema] = {
    probe.name: _schema(*_quantities(probe.table)) for probe in PROBE_ROWS
}


_NOT_LOGGED = frozenset((*TABLES["steps"].names, SHARE, "global_step"))


def is_logged(column: str) -> bool:
    """Whether a column of ``steps`` is one that the training logged itself.

    ``epoch``, ``global_step`` and the learning rates of further groups are none.
    """
    return column not in _NOT_LOGGED and not column.startswith("learning_rate_")


def key_column(table: str) -> str | None:
    """Return the id column of a table of step rows; None for ``steps``."""
    return None if table == "steps" else TABLES[table].names[2]
