"""Attributes of elements whose names are no names in Python."""

from typing import Any

__all__ = ["attributes"]


def attributes(**values: str) -> dict[str, Any]:
    """Return ``aria-`` and ``data-`` attributes: ``aria_label`` stands for ``aria-label``.

    Args:
        values: Values by name, ``_`` for each ``-``.
    """
    return {name.replace("_", "-"): value for name, value in values.items()}
