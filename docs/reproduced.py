"""Write ``reproduced.md`` from the committed numbers: ``python -m docs.reproduced``."""

from pathlib import Path

from analyzer.studies.published import RULE, markdown, outcomes
from analyzer.studies.reproduce import EXPERIMENTS, experiment, read_measured

__all__ = ["ARCHIVES", "PAGE", "page"]

ROOT = Path(__file__).parents[1]
ARCHIVES = ROOT / "tests" / "archives" / "reproduced"
PAGE = ROOT / "docs" / "reproduced.md"

OPENING = """\
# Published results, repeated

`analyzer reproduce NAME` measures what a paper says and prints both numbers. These are the tables
of `--scale laptop`, measured on two cores with one thread. `--scale full --data DIR` takes the
setting of the paper, on a GPU and CIFAR-10; it was not run here. The numbers of each seed are in
`tests/archives/reproduced/`, and a test compares this page with them.
"""


def page() -> str:
    """Return the page: the rule, how many claims agree, and each experiment."""
    measured = {name: read_measured(ARCHIVES / f"{name}.parquet") for name in EXPERIMENTS}
    counts = {"agrees": 0, "disagrees": 0, "not comparable": 0}
    for name, (table, about) in measured.items():
        for one in outcomes(experiment(name), table, about["scale"]):
            counts[one.verdict] += 1
    total = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    blocks = [OPENING, f"**The rule.** {RULE}\n", f"Of {sum(counts.values())} claims: {total}.\n"]
    blocks += [
        markdown(experiment(name), table, about) for name, (table, about) in measured.items()
    ]
    return "\n".join(blocks)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
