"""Whether two runs can be compared: which has the shortcuts, and what else tells them apart."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyzer.analysis.numerals import number
from analyzer.analysis.view import has_shortcuts
from analyzer.errors import AnalyzerError, NotRecordedError
from analyzer.storage.arrays import as_floats
from analyzer.storage.run import Run

__all__ = ["AlikeError", "Difference", "differences", "notes", "put_right", "size_of_batch"]

# Numbers that differ by less do not explain what is claimed.
_MATTERS = 1.25
_NORM = "Norm"


class AlikeError(AnalyzerError):
    """Runs that both have shortcuts, or both have none."""


@dataclass(frozen=True)
class Difference:
    """Something beside the shortcuts that tells two runs apart.

    Args:
        explains: What it can explain: ``training`` (everything after the first update), ``network``
            (everything), ``start`` (everything, as the start of the training), or nothing.
        words: How a sentence says it.
    """

    what: str
    plain: Any
    residual: Any
    explains: str = ""
    words: str = ""


def put_right(plain: Sequence[Run], residual: Sequence[Run]) -> tuple[list[Run], list[Run], bool]:
    """Return the runs without shortcuts, those with them, and whether they came the other way.

    Raises:
        AlikeError: If the roles of the runs are not one each.
    """
    left, right = ([has_shortcuts(run) for run in side] for side in (plain, residual))
    if not any(left) and all(right):
        return list(plain), list(residual), False
    if all(left) and not any(right):
        return list(residual), list(plain), True
    names = [run.name for run in (*plain, *residual)]
    if all((*left, *right)) or not any((*left, *right)):
        alike = "have shortcuts that carry something" if left[0] else "have no shortcuts"
        seen = f"runs {_listed(names)} all {alike}"
    else:
        mixed = plain if any(left) != all(left) else residual
        seen = f"runs {_listed([run.name for run in mixed])} are not alike: some have shortcuts"
    two = [plain[0].name, residual[0].name]
    raise AlikeError(
        f"{seen}; expected runs without shortcuts on one side, with them on the other. "
        f"To put two runs side by side: analyzer compare {' '.join(two)}"
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"'{name}'" for name in dict.fromkeys(names))


def differences(plain: Sequence[Run], residual: Sequence[Run]) -> tuple[Difference, ...]:
    """Return all that tells pairs of runs apart beside their shortcuts, as their folders have it.

    Of several pairs the first that differs.
    """
    found: dict[str, Difference] = {}
    for left, right in zip(plain, residual, strict=True):
        for what, read, explains in _FACTS:
            values = read(left), read(right)
            if what not in found and None not in values and values[0] != values[1]:
                difference = _difference(what, *values, explains)
                if difference is not None:
                    found[what] = difference
    return tuple(found.values())


def _difference(what: str, left: Any, right: Any, explains: str) -> Difference | None:
    is_number = all(isinstance(x, float | int) for x in (left, right))
    shown = [number(float(x)) if is_number else str(x) for x in (left, right)]
    words = f"{what} {shown[0]} without shortcuts, {shown[1]} with them"
    if is_number and what != "seed":
        ratio = max(left, right) / min(left, right) if min(left, right) > 0 else math.inf
        if what == "initial weights" and ratio < _MATTERS:
            return None
        explains = explains if ratio >= _MATTERS else ""
        if 2 <= ratio < math.inf:
            words += f" ({number(ratio)} times)"
    return Difference(what, left, right, explains, words)


def _learning_rate(run: Run) -> float | None:
    """The largest learning rate of the first group."""
    rates = as_floats(run.read("steps", "learning_rate").column("learning_rate"))
    known = rates[np.isfinite(rates)]
    return float(known.max()) if len(known) else None


def _optimizer(run: Run) -> str | None:
    found = run.manifest.get("optimizers")
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        return None
    return ", ".join(
        " ".join([str(one.get("name")), *(f"{k} {v}" for k, v in one.items() if k != "name")])
        for one in found
    )


def _steps(run: Run) -> int:
    return len(run.recorded_steps())


def _main_layers(run: Run) -> list[dict[str, Any]]:
    """Layers that are not of a projection on a shortcut."""
    columns = ["kind", "num_parameters", "output_shape", "role"]
    rows = run.static_rows("layers").select(columns).to_pylist()
    return [row for row in rows if row["role"] != "shortcut"]


def size_of_batch(run: Run) -> int | None:
    """Return the first axis of the first output; None without one."""
    shapes = [row["output_shape"] for row in _main_layers(run) if row["output_shape"]]
    return int(shapes[0][0]) if shapes else None


def _with_weights(run: Run) -> list[dict[str, Any]]:
    return [row for row in _main_layers(run) if row["num_parameters"] and _NORM not in row["kind"]]


def _widths(run: Run) -> str | None:
    shapes = [(row["kind"], row["output_shape"]) for row in _with_weights(run)]
    known = [s[1] if "Conv" in kind and len(s) > 1 else s[-1] for kind, s in shapes if s]
    return ", ".join(map(str, dict.fromkeys(known))) or None


def _depth(run: Run) -> int | None:
    return len(_with_weights(run)) or None


def _normalization(run: Run) -> str:
    kinds = {row["kind"] for row in _main_layers(run) if _NORM in row["kind"]}
    return ", ".join(sorted(kinds)) or "none"


def _initial_weights(run: Run) -> float | None:
    """Median root mean square of the weights at the first step."""
    steps = run.recorded_steps("parameter_stats")
    if not len(steps) or (run.manifest.get("rescale") or run.manifest.get("rescaled")):
        return None
    try:
        rows = run.parameter_stats("norm", steps=int(steps[0]))
    except NotRecordedError:
        return None
    static = run.parameters.set_index("parameter")
    weights = static[static["shape"].map(len) > 1]
    rms: Any = rows.set_index("parameter")["norm"] / np.sqrt(weights["num_elements"].astype(float))
    known: Any = rms[np.isfinite(rms)]
    return float(known.median()) if len(known) else None


def _partial_scale(run: Run) -> str | None:
    """What the shortcuts of a residual run are multiplied by, where that is not 0."""
    scale = run.manifest.get("skip_scale")
    is_twin = scale is not None and not has_shortcuts(run)
    return "1" if scale is None or is_twin else str(scale)


def _seed(run: Run) -> Any:
    return run.manifest.get("seed")


_FACTS: tuple[tuple[str, Callable[[Run], Any], str], ...] = (
    ("learning rate", _learning_rate, "training"),
    ("optimizer", _optimizer, "training"),
    ("steps", _steps, "training"),
    ("batch size", size_of_batch, "training"),
    ("data", lambda run: run.manifest.get("data"), "network"),
    ("first batch", lambda run: run.manifest.get("first_batch"), ""),
    ("widths", _widths, "network"),
    ("depth", _depth, "network"),
    ("normalization", _normalization, "network"),
    ("initial weights", _initial_weights, "start"),
    ("skip scale", _partial_scale, ""),
    ("seed", _seed, ""),
)
"""What is compared: its name, how it is read, and what it can explain."""


def _swap_note(plain: Sequence[Run], residual: Sequence[Run], is_swapped: bool) -> str:
    if not is_swapped:
        return ""
    names = (", ".join(run.name for run in side) for side in (plain, residual))
    return "The runs came in the other order and were put right: plain {}, residual {}.".format(
        *names
    )


def notes(plain: Sequence[Run], residual: Sequence[Run], is_swapped: bool = False) -> str:
    """Return which run is which, how the plain one was made, and where joins were not seen."""
    said = [_swap_note(plain, residual, is_swapped), _twin_note(plain[0]) if plain else ""]
    hidden = [
        run.name
        for run in (*plain, *residual)
        if any(
            "join" in one and not one.startswith("probe ")
            for one in map(str, run.manifest.get("not_recorded") or ())
        )
    ]
    if hidden:
        said.append(f"Not all joins of {', '.join(dict.fromkeys(hidden))} could be seen.")
    return " ".join(filter(None, said))


def _twin_note(plain: Run) -> str:
    """How the plain run was made, as far as its manifest says."""
    scale = plain.manifest.get("skip_scale")
    if scale is None:
        return ""
    rescaled = plain.manifest.get("rescale") or plain.manifest.get("rescaled")
    branches = (
        "its branches were initialized again so that activation variances match"
        if rescaled
        else "its branches kept their scale, so activations have another scale than the original's"
    )
    of = f" of {', '.join(scale)}" if isinstance(scale, dict) else ""
    alpha = max(scale.values(), default=0) if isinstance(scale, dict) else scale
    return f"The plain run is a twin with every shortcut{of} multiplied by {alpha:g}; {branches}."
