"""The layout of a run folder: tables, columns, types, units and meanings, from the vocabulary."""

import pyarrow as pa

from analyzer.vocabulary import PROBES as PROBE_ROWS
from analyzer.vocabulary import quantities_of

__all__ = [
    "CONSTANT_COLUMNS",
    "PROBES",
    "READABLE_VERSIONS",
    "SCHEMA_VERSION",
    "STATIC_TABLES",
    "STAT_COLUMNS",
    "STEP_TABLES",
    "TABLES",
    "key_column",
]

# 1: first layout.
SCHEMA_VERSION = 1
READABLE_VERSIONS = range(1, SCHEMA_VERSION + 1)


def _column(
    name: str, type_: pa.DataType, description: str, unit: str = "", *, nullable: bool = True
) -> pa.Field:
    return pa.field(name, type_, nullable, metadata={"unit": unit, "description": description})


def _quantities(table: str) -> list[pa.Field]:
    return [
        _column(row.key, pa.type_for_alias(row.type), row.description, row.unit)
        for row in quantities_of(table)
    ]


_STEP = _column("step", pa.int64(), "Attempted updates before this one.", "steps", nullable=False)
_RANK = _column("rank", pa.int16(), "Process that wrote the row.", nullable=False)
_INTEGERS, _STRINGS = pa.list_(pa.int64()), pa.list_(pa.string())

_LAYERS = [
    _column("layer", pa.int32(), "Number of the layer, in call order.", nullable=False),
    _column("name", pa.string(), "Module path, with #k for call k > 0.", nullable=False),
    _column("module", pa.string(), "Module path; the class name for the root.", nullable=False),
    _column("call", pa.int32(), "Call since the previous backward pass ended.", nullable=False),
    _column("kind", pa.string(), "Class name of the module.", nullable=False),
    _column(
        "depth",
        pa.int32(),
        "Layers on the longest path from the input to this one.",
        "layers",
        nullable=False,
    ),
    _column(
        "num_parameters",
        pa.int64(),
        "Elements of the parameters that the module owns directly.",
        "elements",
        nullable=False,
    ),
    _column("output_shape", _INTEGERS, "Shape of the output when it was first seen."),
    _column("join", pa.int32(), "Innermost residual join that the layer is a part of."),
    _column("role", pa.string(), "branch or shortcut of that join."),
]
_PARAMETERS = [
    _column("parameter", pa.int32(), "Number of the parameter.", nullable=False),
    _column("name", pa.string(), "Name in named_parameters().", nullable=False),
    _column("layer", pa.int32(), "First layer that uses it; null where none was called."),
    _column("shape", _INTEGERS, "Global shape.", nullable=False),
    _column("num_elements", pa.int64(), "Global number of elements.", "elements", nullable=False),
    _column(
        "trained",
        pa.bool_(),
        "Whether it wants a gradient and an optimizer (where there is one) holds it.",
        nullable=False,
    ),
    _column("placement", pa.string(), "replicated or sharded over the ranks.", nullable=False),
]
_JOINS = [
    _column("join", pa.int32(), "Number of the join, in forward order.", nullable=False),
    _column("name", pa.string(), "Innermost module that holds fork and join.", nullable=False),
    _column("operation", pa.string(), "add or cat.", nullable=False),
    _column("shortcut", pa.string(), "identity, projection or concat.", nullable=False),
    _column("branch_layers", _STRINGS, "Layers of the branch, in forward order.", nullable=False),
    _column(
        "shortcut_layers", _STRINGS, "Layers of the shortcut, in forward order.", nullable=False
    ),
    _column("branch_parameters", pa.int64(), "Parameters of the branch.", "elements"),
    _column("shortcut_parameters", pa.int64(), "Parameters of the shortcut.", "elements"),
]
_STEPS = [
    _STEP,
    _RANK,
    _column("attempt", pa.int16(), "Counts restarts of the same training.", nullable=False),
    _column("epoch", pa.int32(), "Epoch, where the training says it."),
    *_quantities("steps"),
    _column("time", pa.timestamp("us", tz="UTC"), "When the step ended."),
]


def _step_table(table: str, key: str, meaning: str) -> pa.Schema:
    key_field = _column(key, pa.int32(), meaning, nullable=False)
    return _with_version([_STEP, _RANK, key_field, *_quantities(table)])


def _with_version(fields: list[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


STAT_COLUMNS: dict[str, tuple[str, ...]] = {
    table: tuple(row.key for row in quantities_of(table))
    for table in ("layer_stats", "parameter_stats", "splits")
}
CONSTANT_COLUMNS = ("step", "rank", "attempt")
STATIC_TABLES = ("layers", "parameters", "joins")
STEP_TABLES = ("steps", *STAT_COLUMNS)
TABLES: dict[str, pa.Schema] = {
    "layers": _with_version(_LAYERS),
    "parameters": _with_version(_PARAMETERS),
    "joins": _with_version(_JOINS),
    "steps": _with_version(_STEPS),
    "layer_stats": _step_table("layer_stats", "layer", "Row of layers.parquet."),
    "parameter_stats": _step_table("parameter_stats", "parameter", "Row of parameters.parquet."),
    "splits": _step_table("splits", "join", "Row of joins.parquet."),
}
PROBES: dict[str, pa.Schema] = {
    probe.name: _with_version(_quantities(probe.table)) for probe in PROBE_ROWS
}
_KEYS: dict[str, str | None] = {
    "steps": None,
    "layer_stats": "layer",
    "parameter_stats": "parameter",
    "splits": "join",
}


def key_column(table: str) -> str | None:
    """Return the id column of a table of step rows; None for ``steps``."""
    return _KEYS[table]
