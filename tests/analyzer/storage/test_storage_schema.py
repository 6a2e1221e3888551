import pyarrow as pa
import pytest

from analyzer.storage.pages import as_markdown, schema_page
from analyzer.storage.schema import EDGES, PROBES, STAT_COLUMNS, STATIC_TABLES, STEP_TABLES, TABLES
from analyzer.vocabulary import quantity

STATISTICS = [(table, column) for table, columns in STAT_COLUMNS.items() for column in columns]


def expected_type(table: str, column: str) -> pa.DataType:
    """The sentence of the contract on types, as code."""
    if column.endswith("num_dead"):
        return pa.int32()
    if column.endswith("num_nonfinite"):
        return pa.int64()
    single = table in ("layer_stats", "parameter_stats") and not column.endswith("norm")
    return pa.float32() if single else pa.float64()


@pytest.mark.parametrize(("table", "column"), STATISTICS)
def test_a_statistic_has_the_type_of_the_contract(table: str, column: str) -> None:
    assert TABLES[table].field(column).type == expected_type(table, column)


@pytest.mark.parametrize(("table", "column"), STATISTICS)
def test_a_statistic_carries_unit_and_meaning_of_the_vocabulary(table: str, column: str) -> None:
    metadata = TABLES[table].field(column).metadata
    assert metadata[b"unit"].decode() == quantity(column, table).unit
    assert metadata[b"description"].decode() == quantity(column, table).description


@pytest.mark.parametrize("schema", [*TABLES.values(), *PROBES.values()])
def test_every_column_has_a_unit_and_a_meaning(schema: pa.Schema) -> None:
    for field in schema:
        assert b"unit" in field.metadata
        assert field.metadata[b"description"]


def test_tables_begin_with_their_keys() -> None:
    keys = {"steps": "attempt", "layer_stats": "layer", "parameter_stats": "parameter"}
    for table, key in {**keys, "splits": "join"}.items():
        assert TABLES[table].names[:3] == ["step", "rank", key]
        assert [str(f.type) for f in list(TABLES[table])[:2]] == ["int64", "int16"]


def test_only_the_columns_that_the_contract_marks_may_be_null_in_static_tables() -> None:
    nullable = {
        (table, field.name) for table in STATIC_TABLES for field in TABLES[table] if field.nullable
    }
    # Beside them the shape of an output that holds no tensor.
    marked = {("layers", "join"), ("layers", "role"), ("parameters", "layer")}
    assert nullable == marked | {("layers", "output_shape")}


def test_time_is_in_microseconds_of_utc() -> None:
    assert TABLES["steps"].field("time").type == pa.timestamp("us", tz="UTC")


@pytest.mark.parametrize("table", [*STATIC_TABLES, EDGES, *STEP_TABLES])
def test_the_schema_page_shows_every_table(table: str) -> None:
    assert as_markdown(TABLES[table]) in schema_page()
