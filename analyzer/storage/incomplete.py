"""What a run lacks of what was recorded, in words: the same ones wherever a run is shown."""

from collections.abc import Mapping
from typing import Any

__all__ = ["losses"]

_MOST_NAMED = 3


def losses(manifest: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each kind of loss that a manifest tells of; none for a whole run."""
    found = []
    steps, lost = _count(manifest.get("steps")), _count(manifest.get("lost_steps"))
    reason = manifest.get("storage_error")
    if lost:
        why = f": {reason}" if reason else ""
        found.append(f"{steps} of {steps + lost} steps are on disk, {lost} were lost{why}")
    elif reason:
        found.append(f"not all was written: {reason}")
    damaged = manifest.get("damaged")
    if isinstance(damaged, list) and damaged:
        named = "; ".join(map(str, damaged[:_MOST_NAMED]))
        more = f"; and {len(damaged) - _MOST_NAMED} more" if len(damaged) > _MOST_NAMED else ""
        count = "1 file is" if len(damaged) == 1 else f"{len(damaged)} files are"
        found.append(f"{count} damaged or missing: {named}{more}")
    ranks = manifest.get("ranks")
    for rank in ranks if isinstance(ranks, list) else ():
        number, attempt = rank.get("rank"), rank.get("attempt")
        place = f"rank {number}, attempt {attempt}" if attempt else f"rank {number}"
        found += [f"{place}: {text}" for text in losses(rank) if number or attempt]
    return found


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0
