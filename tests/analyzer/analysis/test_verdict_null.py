"""How often a verdict errs on pairs of one architecture, and finds a mechanism that is there."""

import json
from pathlib import Path
from typing import Any

import pytest

from analyzer.analysis.statements import STATEMENTS
from benchmarks.verdict_null import (
    ARCHIVE,
    HELD_OUT,
    HELD_OUT_ARCHIVE,
    NULL,
    judgements,
    null_rows,
    null_table,
    power_rows,
    tables,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def archive() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ARCHIVE.read_text(encoding="utf-8"))
    return found


def test_of_forty_pairs_of_one_architecture_no_claim_holds_in_more_than_one_in_twenty(
    archive: dict[str, Any],
) -> None:
    assert len(archive["null"]) == 40
    assert {pair["kind"] for pair in archive["null"]} == set(NULL)
    rows = null_rows(archive)
    assert {key for key, *_ in rows} == {s.key for s in STATEMENTS if not s.is_of_residual}
    for key, asked, holds, _ in rows:
        assert holds <= 0.05 * 40, key
        assert asked in (0, 40), key
    # Also at the moments that are told apart.
    for pair, claims in judgements(archive["null"]):
        for key in ("vanishing", "exploding"):
            held = [name for name, one in claims.items() if one.status == "holds" and key in name]
            assert not held, pair["kind"]


def test_of_twenty_known_mechanisms_at_least_eighteen_are_found(archive: dict[str, Any]) -> None:
    rows = power_rows(archive)
    assert len(rows) == 20
    found = [set(states.split(", ")) - {"not measured"} == {"holds"} for *_, states in rows]
    assert sum(found) >= 18


def test_of_forty_pairs_that_set_no_limit_no_claim_holds_in_more_than_one_in_twenty() -> None:
    held_out = json.loads(HELD_OUT_ARCHIVE.read_text(encoding="utf-8"))
    assert len(held_out["null"]) == 40
    assert {pair["kind"] for pair in held_out["null"]} == set(HELD_OUT)
    assert not set(HELD_OUT.values()) & set(NULL.values())
    rows = null_rows(held_out)
    assert [asked for _, asked, *_ in rows] == [40] * len(rows)
    assert {key: holds for key, _, holds, _ in rows if holds > 0.05 * 40} == {}
    assert null_table(held_out) in (ROOT / "docs" / "verdict.md").read_text(encoding="utf-8")


def test_other_limits_would_change_what_the_tables_say(
    archive: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive can tell good limits from bad ones: with none, seeds are told apart."""
    from analyzer.analysis import limits

    loose = limits.Limit("loss", 0.0, 1e-9, "")
    monkeypatch.setitem(limits.LIMITS, "loss", loose)
    assert dict((key, holds) for key, _, holds, _ in null_rows(archive))["training_loss"] > 10


def test_the_page_holds_both_tables(archive: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "verdict.md").read_text(encoding="utf-8")
    for table in tables(archive).split("\n\n"):
        assert table in page
