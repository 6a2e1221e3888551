"""Definitions as a paper gives them, and the papers that they come from."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SOURCES", "Method", "Source", "bibtex"]

_ENTRY = re.compile(r"@article\{(\w+),\n.*?\n\}", re.DOTALL)
_FIELD = re.compile(r"^  (\w+) = \{+(.*?)\}+,?$", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """One paper, by its BibTeX entry."""

    bibtex: str

    @property
    def text(self) -> str:
        """The reference as a line of a list."""
        fields = dict(_FIELD.findall(self.bibtex))
        names = [name.partition(",")[0] for name in fields["author"].split(" and ")]
        who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
        number = f", arXiv:{fields['eprint']}" if "eprint" in fields else ""
        return f"{who} ({fields['year']}). {fields['title']}. {fields['journal']}{number}."


_FILE = Path(__file__).with_name("references.bib")
SOURCES = {entry[1]: Source(entry[0]) for entry in _ENTRY.finditer(_FILE.read_text("utf-8"))}
"""Every paper by its key, from ``references.bib``."""


@dataclass(frozen=True)
class Method:
    """One definition of a methods section.

    Args:
        text: What it means and where it does not hold.
        formula: The formula in plain characters; empty where words are enough.
        sources: Keys of ``SOURCES``.

    Raises:
        ValueError: If a source is not known.
    """

    title: str
    text: str
    formula: str = ""
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := [key for key in self.sources if key not in SOURCES]:
            raise ValueError(
                f"method {self.title!r} names {', '.join(unknown)}; expected some of "
                f"{', '.join(SOURCES)}"
            )


def bibtex(methods: Iterable[Method]) -> str:
    """Return the BibTeX entries of the sources of some definitions, with that of He et al. 2015."""
    keys = {"he2015", *(key for method in methods for key in method.sources)}
    return "\n\n".join(SOURCES[key].bibtex for key in sorted(keys)) + "\n"
