"""The layout of a run folder, written once: tables, columns, types, units and meanings."""

import pyarrow as pa

from analyzer.vocabulary import quantity

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


def _quantities(table: str, types: dict[str, pa.DataType]) -> list[pa.Field]:
    fields = []
    for name, type_ in types.items():
        row = quantity(name)
        fields.append(_column(name, type_, row.definition, row.unit))
    return fields


_STEP = _column("step", pa.int64(), "Attempted updates before this one.", "steps", nullable=False)
_RANK = _column("rank", pa.int16(), "Process that wrote the row.", nullable=False)
_SINGLE, _DOUBLE = pa.float32(), pa.float64()

_LAYER_STATS = {
    "activation_norm": _DOUBLE,
    "activation_mean": _SINGLE,
    "activation_std": _SINGLE,
    "activation_min": _SINGLE,
    "activation_max": _SINGLE,
    "activation_zero_fraction": _SINGLE,
    "activation_num_dead": pa.int32(),
    "activation_num_nonfinite": pa.int64(),
    "output_gradient_norm": _DOUBLE,
    "output_gradient_mean_abs": _SINGLE,
    "output_gradient_max_abs": _SINGLE,
    "output_gradient_zero_fraction": _SINGLE,
    "output_gradient_num_nonfinite": pa.int64(),
}
_PARAMETER_STATS = {
    "gradient_norm": _DOUBLE,
    "gradient_mean_abs": _SINGLE,
    "gradient_max_abs": _SINGLE,
    "gradient_num_nonfinite": pa.int64(),
    "norm": _DOUBLE,
    "update_norm": _DOUBLE,
}
_SPLITS = dict.fromkeys(
    (
        "join_gradient_norm",
        "shortcut_gradient_norm",
        "branch_gradient_norm",
        "fork_gradient_norm",
        "cosine",
        "shortcut_share",
    ),
    _DOUBLE,
)
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
    *_quantities(
        "steps",
        {
            "loss": _DOUBLE,
            "learning_rate": _DOUBLE,
            "gradient_norm": _DOUBLE,
            "clip_factor": _DOUBLE,
            "num_backward": pa.int32(),
            "skipped": pa.bool_(),
            "seconds": _DOUBLE,
        },
    ),
    _column("time", pa.timestamp("us", tz="UTC"), "When the step ended."),
]


def _step_table(key: str, meaning: str, types: dict[str, pa.DataType], name: str) -> pa.Schema:
    key_field = _column(key, pa.int32(), meaning, nullable=False)
    return _with_version([_STEP, _RANK, key_field, *_quantities(name, types)])


def _with_version(fields: list[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


STAT_COLUMNS: dict[str, tuple[str, ...]] = {
    "layer_stats": tuple(_LAYER_STATS),
    "parameter_stats": tuple(_PARAMETER_STATS),
    "splits": tuple(_SPLITS),
}
CONSTANT_COLUMNS = ("step", "rank", "attempt")
STATIC_TABLES = ("layers", "parameters", "joins")
STEP_TABLES = ("steps", *STAT_COLUMNS)
TABLES: dict[str, pa.Schema] = {
    "layers": _with_version(_LAYERS),
    "parameters": _with_version(_PARAMETERS),
    "joins": _with_version(_JOINS),
    "steps": _with_version(_STEPS),
    "layer_stats": _step_table("layer", "Row of layers.parquet.", _LAYER_STATS, "layer_stats"),
    "parameter_stats": _step_table(
        "parameter", "Row of parameters.parquet.", _PARAMETER_STATS, "parameter_stats"
    ),
    "splits": _step_table("join", "Row of joins.parquet.", _SPLITS, "splits"),
}
_PROBES: dict[str, tuple[tuple[str, pa.DataType, str, str], ...]] = {
    "paths": (
        ("length", pa.int32(), "joins", "Branches that the paths cross."),
        ("num_paths", _DOUBLE, "paths", "Number of paths of this length."),
        ("gradient_norm", _DOUBLE, "loss / unit of x", "Mean over samples of ‖G_k‖₂."),
        ("share", _DOUBLE, "1", "Mean over samples of ⟨G_k, G⟩ / ‖G‖²; adds to 1."),
    ),
    "landscape": (
        ("alpha", _DOUBLE, "", "Coordinate along the first direction."),
        ("beta", _DOUBLE, "", "Coordinate along the second direction."),
        ("loss", _DOUBLE, "loss", "Loss at this point; never repaired."),
        ("evaluated", pa.bool_(), "", "Whether the point was evaluated."),
    ),
    "shattering": (
        ("layer", pa.int32(), "", "Layer, in call order; row of layers.parquet."),
        ("name", pa.string(), "", "Name of the layer."),
        ("correlation", _DOUBLE, "1", "Mean cosine over all pairs of inputs of the batch."),
    ),
    "jacobian": (
        ("name", pa.string(), "", "Block, or the whole network."),
        ("rank_order", pa.int32(), "", "Place of the singular value, from the largest."),
        ("singular_value", _DOUBLE, "unit of y / unit of x", "Of ∂(output)/∂(input)."),
    ),
    "lesion": (
        ("join", pa.int32(), "", "Row of joins.parquet."),
        ("loss", _DOUBLE, "loss", "Loss without the branch of this join."),
        ("loss_change", _DOUBLE, "loss", "That loss minus the loss of the whole network."),
        ("accuracy", _DOUBLE, "1", "Accuracy without the branch."),
    ),
    "curvature": (
        ("quantity", pa.string(), "", "What was measured."),
        ("value", _DOUBLE, "loss / (unit of θ)²", "Its value."),
    ),
    "attribution": (
        ("layer", pa.int32(), "", "Layer, in call order; row of layers.parquet."),
        ("name", pa.string(), "", "Name of the layer."),
        ("method", pa.string(), "", "Attribution method."),
        ("attribution", _DOUBLE, "unit of the target", "Attribution of the layer."),
        ("share", _DOUBLE, "1", "Attribution over the sum of all layers."),
    ),
    "noise": (
        ("gradient_noise_scale", _DOUBLE, "samples", "tr Σ / ‖G‖²."),
        ("signal_norm", _DOUBLE, "loss / unit of θ", "‖G‖₂ of the true gradient, estimated."),
        ("noise_trace", _DOUBLE, "(loss / unit of θ)²", "tr Σ of one sample's gradient."),
    ),
}
PROBES: dict[str, pa.Schema] = {
    name: _with_version([_column(n, type_, text, unit) for n, type_, unit, text in rows])
    for name, rows in _PROBES.items()
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
