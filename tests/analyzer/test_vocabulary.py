"""Every number that a run can hold has a row that says what it is and how it is pooled."""

from importlib import import_module

import pytest

from analyzer.storage.pages import vocabulary_page
from analyzer.storage.schema import CONSTANT_COLUMNS, STEP_TABLES, TABLES, key_column
from analyzer.storage.schema import PROBES as SCHEMAS
from analyzer.vocabulary import QUANTITIES, RULES, Pooling, Quantity, quantity
from analyzer.vocabulary.probes import PROBES, Probe

# What tells rows apart or says when, and is not measured.
KEYS = {*CONSTANT_COLUMNS, "epoch", "time"}
COLUMNS = [
    (table, name)
    for table in STEP_TABLES
    for name in TABLES[table].names
    if name not in KEYS and name != key_column(table)
] + [(f"probes/{probe}", name) for probe, schema in SCHEMAS.items() for name in schema.names]
ROW = {
    "key": "activation_skewness",
    "label": "skewness",
    "unit": "",
    "definition": "Third standardized moment.",
    "table": "layer_stats",
    "type": "float32",
}


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_every_recorded_number_is_documented(table: str, column: str) -> None:
    row = quantity(column, table)
    assert row.label
    assert row.definition.endswith((".", "!", "‖²."))
    assert row.pooling.ranks in RULES
    assert row.description in {row.definition, f"{row.definition} {row.degenerate}"}


@pytest.mark.parametrize("row", QUANTITIES, ids=lambda row: f"{row.table}/{row.key}")
def test_the_page_of_the_vocabulary_shows_every_quantity(row: Quantity) -> None:
    assert f"| `{row.key}` | {row.label.replace('|', chr(92) + '|')} |" in vocabulary_page()


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_every_probe_is_documented_and_can_be_measured(probe: Probe) -> None:
    assert f"- `{probe.name}`: {probe.sentence}" in vocabulary_page()
    module, _, function = probe.function.partition(":")
    assert callable(getattr(import_module(module), function))
    assert SCHEMAS[probe.name].names == [column.key for column in probe.columns]


def test_a_quantity_without_a_pooling_rule_is_refused() -> None:
    with pytest.raises(TypeError, match="pooling"):
        Quantity(**ROW)
    with pytest.raises(ValueError, match="activation_skewness has no pooling rule: None"):
        Quantity(**ROW, pooling=None)
    with pytest.raises(ValueError, match="pooling rule is 'average'; expected one of norm, mean"):
        Pooling("average", "mean")


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ({"definition": ""}, "activation_skewness has no label or no definition"),
        ({"label": ""}, "activation_skewness has no label or no definition"),
        ({"type": "double"}, "has type 'double'; expected one of bool, int32"),
    ],
)
def test_a_broken_row_is_refused(broken: dict[str, str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Quantity(**{**ROW, **broken}, pooling=Pooling("mean", "mean"))


def test_a_probe_without_a_sentence_or_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="probe 'drift' has no sentence or no columns"):
        Probe(name="drift", sentence="How far the weights went.", columns=())


def test_a_column_that_two_tables_have_is_found_by_its_table() -> None:
    assert quantity("gradient_norm").table == "parameter_stats"
    assert quantity("gradient_norm", "steps").label != quantity("gradient_norm").label
    with pytest.raises(KeyError, match="no_such"):
        quantity("no_such")
