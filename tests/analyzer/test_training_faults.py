from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.analyzer.training_faults import KINDS, Trainings, survive

SAMPLE = ("SIGKILL", "ENOSPC", "hung", "removed live", "flipped later")
LEFT = ("SIGTERM", "EIO once", "swapped live")


@pytest.fixture(scope="module")
def trainings() -> Iterator[Trainings]:
    found = Trainings()
    yield found
    found.close()


@pytest.mark.parametrize(
    "kind", [*SAMPLE, *(pytest.param(kind, marks=pytest.mark.slow) for kind in LEFT)]
)
def test_a_training_survives_a_fault(trainings: Trainings, tmp_path: Path, kind: str) -> None:
    survive(trainings, tmp_path / "a", kind, seed=0)


@pytest.mark.slow
def test_a_hundred_trainings_survive_a_fault(trainings: Trainings, tmp_path: Path) -> None:
    failures = []
    for seed in range(1, 101):
        kind = KINDS[seed % len(KINDS)]
        try:
            survive(trainings, tmp_path / str(seed), kind, seed)
        except AssertionError as error:
            failures.append((seed, kind, str(error)[:200]))
    assert not failures, failures
