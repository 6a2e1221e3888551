"""Chooses layers by a regular expression that cannot hang, whatever is typed."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from analyzer.errors import AnalyzerError

__all__ = ["PatternError", "matching"]

_MOST_CHARACTERS = 200


class PatternError(AnalyzerError):
    """A pattern that is no regular expression."""


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the names in which a regular expression finds something, in their order.

    The engine (RE2, in Arrow) takes time linear in its input: ``(a+)+$`` is as quick as ``a``.
    It knows no back references and no look-around.

    Args:
        pattern: The expression; an empty one finds everything.
        names: Names of layers.

    Raises:
        PatternError: If the pattern is too long or no regular expression.
    """
    if not pattern:
        return list(names)
    if len(pattern) > _MOST_CHARACTERS:
        raise PatternError(
            f"the layer pattern has {len(pattern):,} characters, expected at most "
            f"{_MOST_CHARACTERS}; shorten it."
        )
    try:
        found = pc.match_substring_regex(pa.array(names, pa.string()), pattern=pattern)
    except pa.ArrowInvalid as error:
        reason = str(error).removeprefix("Invalid regular expression: ")
        raise PatternError(
            f"the layer pattern '{pattern}' is no regular expression ({reason}); "
            "look-around and back references are not known here."
        ) from error
    return [name for name, hit in zip(names, found.to_pylist(), strict=True) if hit]
