"""The options of a recording as keywords of a class: in its signature and in its docstring."""

import inspect
from collections.abc import Iterator
from typing import TypeVar

from analyzer.options import RECORDER, options_of, with_parameters

__all__ = ["takes_options"]

_Class = TypeVar("_Class", bound=type)


def takes_options(kind: _Class) -> _Class:
    """Write the options of a recording into the signature and the docstring of a class."""
    signature = with_parameters(inspect.signature(kind), _parameters())
    documentation = f"    Options:\n{_described()}\n\n    Raises:"
    kind.__signature__ = signature  # type: ignore[attr-defined]
    kind.__doc__ = (kind.__doc__ or "").replace("    Raises:", documentation, 1)
    return kind


def _parameters() -> Iterator[inspect.Parameter]:
    for one in options_of(RECORDER):
        keyword = inspect.Parameter.KEYWORD_ONLY
        yield inspect.Parameter(one.name, keyword, default=one.default, annotation=one.type)


def _described() -> str:
    lines = []
    for one in options_of(RECORDER):
        option = one.metadata["option"]
        values = f" ({option.metavar})" if option.metavar else ""
        lines.append(f"        {one.name}{values}: {option.help} Default: {one.default!r}.")
    return "\n".join(lines)
