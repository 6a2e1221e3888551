from collections import Counter
from pathlib import Path

import pytest

from tests.analyzer.storage.storage_faults import survive


@pytest.mark.parametrize("seed", range(60))
def test_a_fault_costs_only_what_it_hits_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    survive(tmp_path / "run", seed, monkeypatch)


@pytest.mark.slow
def test_two_thousand_faults(tmp_path: Path) -> None:
    kinds, failures = Counter[str](), []
    for seed in range(1000, 3000):
        with pytest.MonkeyPatch.context() as patch:
            try:
                kinds[survive(tmp_path / str(seed), seed, patch)] += 1
            except AssertionError as error:
                failures.append((seed, str(error)[:200]))
    assert failures == []
    assert len(kinds) == 12 and min(kinds.values()) > 100
