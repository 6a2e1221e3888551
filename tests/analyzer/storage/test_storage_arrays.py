import math
from enum import IntEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzer.storage.arrays import (
    as_array,
    as_cells,
    as_column,
    as_floats,
    as_numpy,
    conform,
    inferred,
    is_present,
    plain,
    unified,
)

CELLS = {
    pa.bool_(): st.booleans(),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(),
    pa.string(): st.text(st.characters(exclude_categories=["Cs"])),
    pa.list_(pa.string()): st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3),
    pa.list_(pa.int64()): st.lists(st.integers(0, 9), max_size=3),
}


@pytest.mark.parametrize("type_", CELLS, ids=str)
@given(data=st.data())
def test_cells_become_what_pyarrow_makes_of_them(type_: pa.DataType, data: Any) -> None:
    cells = data.draw(st.lists(st.none() | CELLS[type_]))
    made = as_cells(cells, type_)
    made.validate(full=True)
    assert made.type == type_
    np.testing.assert_equal(made.to_pylist(), pa.array(cells, type_).to_pylist())


@pytest.mark.parametrize("type_", [pa.bool_(), pa.int16(), pa.float32(), pa.float64()], ids=str)
@given(data=st.data(), start=st.integers(0, 20), split=st.booleans())
def test_a_slice_is_read_as_pyarrow_reads_it(
    type_: pa.DataType, data: Any, start: int, split: bool
) -> None:
    cells = data.draw(st.lists(st.none() | st.integers(0, 1), max_size=40))
    whole = pa.array([None if c is None else type_.to_pandas_dtype()(c) for c in cells], type_)
    part = whole.slice(start)
    column = pa.chunked_array([part, whole]) if split else part
    expected = column.to_pylist()
    present = is_present(column)
    assert present.tolist() == [cell is not None for cell in expected]
    assert as_numpy(column)[present].tolist() == [cell for cell in expected if cell is not None]
    floats = [math.nan if cell is None else float(cell) for cell in expected]
    np.testing.assert_array_equal(as_floats(column), floats)


def test_nan_is_a_value_and_a_mask_is_null() -> None:
    values, null = np.array([math.nan, 1.0, 2.0]), np.array([False, False, True])
    made = as_array(values, pa.float32(), null)
    assert made.null_count == 1
    assert math.isnan(made[0].as_py())
    assert made.to_pylist()[1:] == [1.0, None]


def test_a_nan_count_is_null() -> None:
    made = as_column(np.array([3.0, math.nan, 5.0]), np.array([True, True, False]), pa.int32())
    assert made.to_pylist() == [3, None, None]


@pytest.mark.parametrize(
    ("cell", "type_", "error"),
    [
        ("fast", pa.float64(), ValueError),
        (2.5, pa.int32(), ValueError),
        (2**40, pa.int32(), OverflowError),
        (1, pa.bool_(), TypeError),
    ],
)
def test_a_cell_that_does_not_fit_is_refused(
    cell: Any, type_: pa.DataType, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"fast|2\.5|out of bounds|not a truth value"):
        as_cells([cell], type_)


class Phase(IntEnum):
    WARM = 3


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int8(3), 3),
        (np.bool_(True), True),
        (np.array([2.5]), 2.5),
        (np.str_("x"), "x"),
        (Phase.WARM, 3),
        (2**70, float(2**70)),
        (None, None),
        ({"a": 1}, "{'a': 1}"),
    ],
)
def test_a_logged_value_becomes_a_plain_one(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)


@pytest.mark.parametrize(
    ("cells", "type_"),
    [
        ([None], pa.null()),
        ([True, None], pa.bool_()),
        ([1, 2], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([True, 2], pa.float64()),
        ([1, "x"], pa.string()),
    ],
)
def test_the_narrowest_type_holds_all_cells(cells: list[Any], type_: pa.DataType) -> None:
    assert inferred(cells) == type_


def test_types_are_widened_and_missing_columns_are_null() -> None:
    old, new = pa.table({"a": [1], "b": [True]}), pa.table({"a": [2.5], "c": ["x"]})
    schema = unified([old.schema, new.schema])
    both = pa.concat_tables([conform(old, schema), conform(new, schema)])
    assert both.to_pydict() == {"a": [1.0, 2.5], "b": [True, None], "c": [None, "x"]}
