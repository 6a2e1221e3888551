"""What README.md and docs/ show in code blocks works when it is typed: commands and Python."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import analyzer
from analyzer.cli import COMMANDS, load
from tests.support.full_run import write_full_pair, write_network_run
from tests.support.hostile_studies import write_study

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")))
# Libraries that the default environment lacks; tests/integrations has what they do.
_OF_OTHERS = ("from lightning", "from transformers", "skorch", "RecorderCallback")


def blocks(page: str, *languages: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
    return [block for language, block in found if language in languages]


def typed(page: str) -> Iterator[list[str]]:
    """The words of each command that a page shows, from ``analyzer`` on, without its comment."""
    for block in blocks(page, "", "sh"):
        for line in block.splitlines():
            command = re.search(r"(?:^|-m )(analyzer \w.*)", line)
            if command and command[1].split()[1] in COMMANDS:
                text = re.split(r"\s{6,}|\s+#", command[1])[0]
                yield shlex.split(text)[1:]


COMMAND_LINES = [(page, words) for page in PAGES for words in typed(page)]


@pytest.mark.parametrize(
    ("page", "words"), COMMAND_LINES, ids=[" ".join(words)[:60] for _, words in COMMAND_LINES]
)
def test_each_command_of_the_pages_has_the_options_it_is_shown_with(
    page: str, words: list[str]
) -> None:
    load(words[0]).make_context("analyzer", words[1:]).close()


def test_a_command_with_an_option_that_there_is_not_would_be_seen() -> None:
    assert len(COMMAND_LINES) > 40
    with pytest.raises(Exception, match="No such option"):
        load("record").make_context("analyzer", ["--nosuch", "train.py"])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return x + torch.relu(self.branch(x))


def names() -> dict[str, Any]:
    """What the pages take for granted: a model, its data, its loss, and a loop that trains it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Block(), Block(), nn.Linear(4, 3))
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    loss = nn.functional.cross_entropy

    def train(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()

    found = {"model": model, "x": x, "y": y, "loss": loss, "train": train, "analyzer": analyzer}
    return found | {"inputs": x, "targets": y, "batches": [(x, y)]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANALYZER_RUNS", raising=False)
    return tmp_path


def of_page(page: str) -> list[str]:
    found = blocks(page, "python")
    return [block for block in found if not any(word in block for word in _OF_OTHERS)]


@pytest.mark.parametrize("page", [page for page in PAGES if of_page(page)])
def test_the_python_of_each_page_works(page: str, folder: Path) -> None:
    given = names()
    given["plain"], given["residual"] = map(analyzer.open_run, write_full_pair(folder / "pair"))
    if page != "README.md":  # which records this one itself
        write_network_run(folder / "runs" / "mine", has_shortcuts=True)
    write_study(folder / "runs" / "study-0", folder / "outside")
    # As on the page, with less to compute.
    less = {"depth56": "depth6", "np.linspace(-1, 1, 51)": "np.linspace(-1, 1, 3)"}
    for block in of_page(page):
        for shown, here in less.items():
            block = block.replace(shown, here)
        exec(compile(block, page, "exec"), given)
