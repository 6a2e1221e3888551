"""What the words of the lesson are made of: steps, questions, answers and programs."""

from dataclasses import dataclass, field

__all__ = [
    "BLOCK",
    "GRADES",
    "MISMATCH",
    "PROJECTION",
    "Choice",
    "Question",
    "Snippet",
    "Step",
    "right",
    "wrong",
]

GRADES = ("easy", "medium", "hard")
BLOCK = """\
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.f = nn.Linear(width, width)  # W·x + b

    def forward(self, x):
        return self.f(x) + x
"""
MISMATCH = """\
import torch
from torch import nn

x = torch.zeros(1, 64, 32, 32)
f = nn.Conv2d(64, 128, kernel_size=3, stride=2, padding=1)
try:
    f(x) + x
except RuntimeError as error:
    print(error)
"""
PROJECTION = """\
import torch
from torch import nn

x = torch.zeros(1, 64, 32, 32)
f = nn.Conv2d(64, 128, kernel_size=3, stride=2, padding=1)
shortcut = nn.Conv2d(64, 128, kernel_size=1, stride=2)
print(shortcut(x).shape)
print((f(x) + shortcut(x)).shape)
"""


@dataclass(frozen=True)
class Choice:
    """One answer to a question: whether it is right, and why."""

    text: str
    is_right: bool
    why: str


def right(text: str, why: str) -> Choice:
    """Return the right answer to a question."""
    return Choice(text, True, why)


def wrong(text: str, why: str) -> Choice:
    """Return a wrong answer to a question."""
    return Choice(text, False, why)


@dataclass(frozen=True)
class Snippet:
    """A program and what it prints."""

    code: str
    prints: str


@dataclass(frozen=True)
class Step:
    """One step of the lesson.

    Args:
        key: Name of its figure in ``scenes.SCENES``.
        title: Its heading.
        question: What to predict.
        choices: The answers to it, one of them right.
        sentence: What the figure shows.
        takeaway: What to keep.
        snippets: Programs to read and to run.
        more: A paragraph between the programs and the figure.
        before: What must be known to answer the question.
    """

    key: str
    title: str
    question: str
    choices: tuple[Choice, ...]
    sentence: str
    takeaway: str
    snippets: tuple[Snippet, ...] = field(default=())
    more: str = ""
    before: str = ""


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        grade: One of ``GRADES``.
        text: What is asked.
        choices: The answers, one of them right, each with its reason.
        code: A program that belongs to the question.
        proof: A program whose output shows the answer.
        figure: A figure that shows it: its name in ``scenes.SCENES``, and the state.
    """

    grade: str
    text: str
    choices: tuple[Choice, ...]
    code: str = ""
    proof: Snippet | None = None
    figure: tuple[str, str] | None = None
