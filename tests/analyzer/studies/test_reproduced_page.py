from pathlib import Path

import pytest

from analyzer.studies.published import outcomes
from analyzer.studies.reproduce import EXPERIMENTS, experiment, read_measured, reproduce
from docs.reproduced import ARCHIVES, PAGE, page


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_at_the_scale_of_a_laptop(name: str, tmp_path: Path) -> None:
    chosen = experiment(name)
    table, _ = reproduce(name, tmp_path, scale="laptop", device="cpu")
    committed, _ = read_measured(ARCHIVES / f"{name}.parquet")
    assert set(table["quantity"]) == set(committed["quantity"])
    # Other processors round differently, and trainings part: what is certain stays so.
    found = {one.claim.key: one for one in outcomes(chosen, table, "laptop")}
    for one in outcomes(chosen, committed, "laptop"):
        now = found[one.claim.key]
        assert {one.verdict, now.verdict} != {"agrees", "disagrees"}, (one, now)


def test_the_page_of_the_site_is_what_the_committed_numbers_say() -> None:
    assert sorted(path.stem for path in ARCHIVES.glob("*.parquet")) == sorted(EXPERIMENTS)
    assert PAGE.read_text(encoding="utf-8") == page()
    for name in EXPERIMENTS:
        table, about = read_measured(ARCHIVES / f"{name}.parquet")
        assert (about["experiment"], about["scale"]) == (name, "laptop")
        assert about["command"].startswith(f"analyzer reproduce {name} --scale laptop")
        assert float(about["seconds"]) < 900
        assert len(table) > 0
        for one in outcomes(experiment(name), table, "laptop"):
            if one.claim.number is not None and one.verdict == "disagrees":
                low, high = one.interval or (one.mean, one.mean)
                assert not low <= one.claim.number <= high
