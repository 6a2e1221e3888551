"""The arithmetic of pooling against plain numpy over the elements of all parts."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer import pooling
from analyzer.pooling import Column, Groups, Pool, needed_columns, total_norm
from analyzer.vocabulary import RULES, Pooling, Quantity, quantity

SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=5)
MOMENTS: dict[str, Callable[[np.ndarray], float]] = {
    "activation_norm": lambda x: float(np.linalg.norm(x)),
    "activation_mean": lambda x: float(x.mean()),
    "activation_std": lambda x: float(x.std()),
    "activation_min": lambda x: float(x.min()),
    "activation_max": lambda x: float(x.max()),
    "activation_zero_fraction": lambda x: float((x == 0).mean()),
    "activation_num_nonfinite": lambda x: float((~np.isfinite(x)).sum()),
}
RMS = Quantity(
    "activation_rms",
    "activation root mean square",
    "Root of the mean square over all elements.",
    Pooling("follows", "follows"),
    table="layer_stats",
    type="float32",
    moments="activation",
    value=lambda x: (x.mean**2 + x.std**2) ** 0.5,
    needs=("activation_mean", "activation_std"),
)


def parts_of(sizes: list[int], seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [np.round(generator.normal(shift, 1.0, n), 1) for shift, n in enumerate(sizes)]


def pool_of(parts: list[np.ndarray], over: str = "batches", table: str = "layer_stats") -> Pool:
    """All parts as those of one whole; over ranks they count alike."""
    sizes = np.array([len(part) for part in parts], dtype=float)
    groups = Groups.of(np.zeros(len(parts)), weights=sizes if over == "batches" else None)

    def read(key: str) -> Column:
        values = np.array([MOMENTS[key](part) for part in parts])
        return values, np.ones(len(parts), dtype=bool)

    return Pool(table, over, groups, read)  # type: ignore[arg-type]


@settings(max_examples=30)
@given(SIZES, st.integers(0, 1000))
@pytest.mark.parametrize("key", MOMENTS)
def test_micro_batches_pool_to_the_moment_of_all_elements(
    key: str, sizes: list[int], seed: int
) -> None:
    parts = parts_of(sizes, seed)
    values, known = pool_of(parts).column(key)
    assert known.all()
    assert values[0] == pytest.approx(MOMENTS[key](np.concatenate(parts)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("over", ["batches", "ranks"])
def test_what_follows_from_others_is_computed_from_the_pooled_ones(
    over: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {("activation_rms", "layer_stats"): RMS}
    find = lambda key, table: rows.get((key, table)) or quantity(key, table)  # noqa: E731
    monkeypatch.setattr(pooling, "quantity", find)
    parts = parts_of([4, 4, 4], 3)
    (found,), (known,) = pool_of(parts, over).column("activation_rms")
    assert known
    assert found == pytest.approx(np.sqrt(np.square(np.concatenate(parts)).mean()))
    needed = needed_columns("layer_stats", ["activation_rms"])
    assert needed == ["activation_rms", "activation_mean", "activation_std"]


def test_a_quantity_that_is_never_sharded_has_no_rule_for_shards() -> None:
    with pytest.raises(ValueError, match="layer_stats/activation_norm has no rule for shards"):
        pool_of(parts_of([2, 2], 0), "shards").column("activation_norm")


def test_a_part_that_is_alone_stays_bit_identical() -> None:
    (part,) = parts_of([7], 1)
    for key, moment in MOMENTS.items():
        assert pool_of([part]).column(key)[0][0] == moment(part)


def test_every_rule_is_used_or_explained_and_has_arithmetic() -> None:
    assert all(RULES.values())
    assert {"norm", "mean", "std", "min", "max", "sum", "dead", "first"} <= set(vars(Groups))


def test_a_total_of_norms_keeps_nan_and_does_not_overflow() -> None:
    assert total_norm([3e300, 4e300]) == pytest.approx(5e300)
    assert np.isnan(total_norm([np.inf, np.nan]))
