"""What a row of the vocabulary says of a quantity."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

__all__ = ["RULES", "Pooling", "Quantity"]

RULES = {
    "norm": "root of the sum of squares",
    "mean": "mean, weighted by the number of elements",
    "std": "root of the mean variance plus the variance of the means",
    "min": "smallest",
    "max": "largest",
    "sum": "sum",
    "dead": "dead where dead in all parts; over ranks the smallest count",
    "cosine": "from the summed dot products",
    "share": "from the summed dot products",
    "follows": "computed from the pooled quantities that it follows from",
    "first": "the first that is known",
}
"""How the values of parts become that of the whole; `analyzer.pooling` has the arithmetic."""

TYPES = ("bool", "int32", "int64", "float32", "float64", "string")


@dataclass(frozen=True)
class Pooling:
    """How the values of the parts of a step become one; each is a key of `RULES`.

    Args:
        batches: Over the micro-batches of a step.
        ranks: Over data-parallel ranks, each with an equal part of the batch.
        shards: Over ranks that hold a part of one tensor each; None where nothing is sharded.
    """

    batches: str
    ranks: str
    shards: str | None = None

    def __post_init__(self) -> None:
        for rule in (self.batches, self.ranks, self.shards):
            if rule is not None and rule not in RULES:
                raise ValueError(f"pooling rule is {rule!r}; expected one of {', '.join(RULES)}")


@dataclass(frozen=True)
class Quantity:
    """One kind of number that a run can hold.

    Args:
        key: Its column name.
        label: What an axis shows.
        definition: One sentence that says what it is.
        pooling: How the values of parts become that of the whole step.
        table: The table of a run folder that holds it.
        type: Type of its column, a word of Arrow.
        unit: Its unit; empty for a pure number.
        degenerate: When it is null, NaN, or at a limit; empty where nothing is to be said.
        source: Where the definition comes from; empty for common knowledge.
        scale: ``log`` or ``linear``, as it is best drawn.
        scales_with_loss: Whether twice the loss gives twice the value.
        is_norm: Whether ``--columns norms`` records it.
        moments: What it is computed from: the activation, the output gradient or the gradient of a
            parameter; empty where it is not computed from a tensor's moments.
        value: How it is computed from the moments: the name of one, or a function of all; empty
            for the moment that its key names.
        needs: Columns without which it cannot be pooled.
    """

    key: str
    label: str
    definition: str
    pooling: Pooling
    _: KW_ONLY
    table: str
    type: str
    unit: str = ""
    degenerate: str = ""
    source: str = ""
    scale: str = "linear"
    scales_with_loss: bool = False
    is_norm: bool = False
    moments: str = ""
    value: str | Callable[[Any], Any] = ""
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        place = f"quantity {self.table}/{self.key}"
        if not isinstance(self.pooling, Pooling):
            raise ValueError(f"{place} has no pooling rule: {self.pooling!r}")
        if self.type not in TYPES:
            raise ValueError(f"{place} has type {self.type!r}; expected one of {', '.join(TYPES)}")
        if self.moments and not self.value:
            object.__setattr__(self, "value", self.key.removeprefix(f"{self.moments}_"))
        if not (self.label and self.definition):
            raise ValueError(f"{place} has no label or no definition; expected both")

    @property
    def description(self) -> str:
        """Definition and degenerate cases."""
        return f"{self.definition} {self.degenerate}".strip()
