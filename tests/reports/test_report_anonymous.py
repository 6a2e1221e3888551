import json
from pathlib import Path

import pytest

from analyzer.reports.html import report_html
from analyzer.reports.run_facts import without_paths
from analyzer.reports.story import story_of
from analyzer.reports.tables import write_tables
from tests.support.full_run import write_network_run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No such file: '/home/jane/data/x.bin'", "No such file: '<path>'"),
        (r"C:\Users\jane\run.py failed", "<path> failed"),
        ("--data ~/cifar --lr 0.1", "--data <path> --lr 0.1"),
        ("code/jane/train.py", "<path>"),
        ("mail jane.doe@lab.edu or https://lab.edu/x", "mail <address> or <address>"),
        ("gain 0.39, 1e-3 / 2", "gain 0.39, 1e-3 / 2"),
    ],
)
def test_paths_and_addresses_are_taken_out_of_a_text(text: str, expected: str) -> None:
    assert without_paths(text) == expected


@pytest.mark.no_cover
def test_nothing_in_an_anonymous_report_says_who_or_where(tmp_path: Path) -> None:
    secrets = ("jane", "bitter-lab", "0123456789abcdef", "2026-11-20", "Linux x86_64")

    def written(folder: Path, **more: bool) -> Path:
        return write_network_run(
            folder / "jane-resnet",
            has_shortcuts=True,
            steps=3,
            argv=["/home/jane/bitter-lab/train.py", "--data=~/bitter-lab/x", "--lr", "0.02"],
            error="OSError: /home/jane/x",
            **more,
        )

    # Without probes it takes a part of the time, and says no less of these.
    open_page = report_html(story_of([written(tmp_path / "open", probes=False)]))
    run = written(tmp_path)
    story = story_of([run], anonymous=True)
    page = report_html(story)
    write_tables(story, tmp_path / "t")
    tables = "".join(path.read_text() for path in (tmp_path / "t").iterdir())
    figures = json.dumps([figure.drawn.to_json() for figure in story.figures])
    assert all(secret in open_page for secret in secrets)
    for text in (page, tables, figures):
        assert not [secret for secret in secrets if secret in text]
    assert "--lr 0.02" in page and "run 1" in page and "Anonymous build" in page
