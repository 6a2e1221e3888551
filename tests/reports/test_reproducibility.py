from pathlib import Path

from analyzer.reports.run_facts import reproducibility
from analyzer.storage.run import open_run
from tests.support.full_run import write_network_run


def facts_of(path: Path) -> dict[str, str]:
    rows = reproducibility([open_run(path)])
    return dict(zip(rows["fact"], rows.iloc[:, 1], strict=True))


def run(folder: Path, **manifest: object) -> Path:
    return write_network_run(
        folder / "r", has_shortcuts=True, blocks=2, steps=2, probes=False, **manifest
    )


def test_types_and_the_digest_of_the_data_are_shown(tmp_path: Path) -> None:
    facts = facts_of(run(tmp_path, dtype="bfloat16, float32", first_batch="00ff", skip_scale=0.5))
    assert facts["dtype of parameters"] == "bfloat16, float32"
    assert facts["data hash"] == "00ff (types, shapes and first values of the first batch)"
    assert facts["scale of the shortcuts"] == "0.5"


def test_a_digest_of_all_data_goes_before_that_of_a_batch(tmp_path: Path) -> None:
    assert facts_of(run(tmp_path, data_hash="abcd", first_batch="00ff"))["data hash"] == "abcd"


def test_what_an_older_run_lacks_is_said(tmp_path: Path) -> None:
    facts = facts_of(run(tmp_path))
    assert facts["dtype of parameters"] == facts["data hash"] == "not recorded"
    assert facts["scale of the shortcuts"] == "none"
