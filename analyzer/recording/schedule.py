"""Which steps, layers and columns are recorded."""

import re
from dataclasses import dataclass

from analyzer.probes.registry import PROBE_NAMES

__all__ = ["ProbePlan", "Schedule"]


@dataclass(frozen=True)
class ProbePlan:
    """At which steps a probe is measured: the first, each ``every``-th, and the last.

    Args:
        name: The probe.
        every: Interval in steps; None for the first and the last step alone.
    """

    name: str
    every: int | None = None

    @classmethod
    def parse(cls, text: str) -> "ProbePlan":
        """Read ``NAME`` or ``NAME:EVERY``.

        Raises:
            ValueError: If it is neither; the message says what was expected.
        """
        name, colon, every = text.partition(":")
        if name not in PROBE_NAMES:
            raise ValueError(
                f"probe is {text!r}; expected NAME or NAME:EVERY with one of "
                f"{', '.join(PROBE_NAMES)}"
            )
        if colon and (not every.isascii() or not every.isdigit() or int(every) < 1):
            raise ValueError(
                f"probe is {text!r}; expected a whole number from 1 up after the colon, as in "
                f"{name}:100"
            )
        return cls(name, int(every) if colon else None)

    def is_due(self, step: int) -> bool:
        """Whether it is measured after a step; after the last step it is measured besides."""
        return step == 0 if self.every is None else step % self.every == 0


@dataclass(frozen=True)
class Schedule:
    """What the options of a recording ask for.

    Args:
        every: Record layers and parameters at each ``every``-th step.
        columns: ``all``, or ``norms`` for the norm columns alone.
        layers: Regular expression; only layers whose name it finds are recorded.
        skip_layers: Regular expression; layers whose name it finds are not recorded.
        splits_every: Split gradients at each ``splits_every``-th recorded step.
        updates_every: Measure updates at each ``updates_every``-th recorded step.
        checkpoint_every: Save weights each so many steps; None for the first and last step.
        stop_after: End the training after so many steps; None to let it end itself.
        probes: The probes that are measured between steps.
    """

    every: int = 1
    columns: str = "all"
    layers: str | None = None
    skip_layers: str | None = None
    splits_every: int = 10
    updates_every: int = 10
    checkpoint_every: int | None = None
    stop_after: int | None = None
    probes: tuple[ProbePlan, ...] = ()

    def __post_init__(self) -> None:
        for name in ("every", "splits_every", "updates_every", "checkpoint_every", "stop_after"):
            value = getattr(self, name)
            optional = name in ("checkpoint_every", "stop_after")
            if value is None and optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a whole number from 1 up")
        if self.columns not in ("all", "norms"):
            raise ValueError(f"columns is {self.columns!r}; expected 'all' or 'norms'")
        for name in ("layers", "skip_layers"):
            pattern = getattr(self, name)
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise ValueError(
                    f"{name} is {pattern!r}, which is no regular expression ({error}); "
                    "expected one such as 'layer1|fc'"
                ) from error

    def records(self, step: int) -> bool:
        """Whether layers and parameters are recorded in a step."""
        return step % self.every == 0

    def measures_updates(self, step: int) -> bool:
        """Whether updates are measured in a step."""
        return self.records(step) and (step // self.every) % self.updates_every == 0

    def splits(self, step: int) -> bool:
        """Whether gradients are split at the joins in a step."""
        return self.records(step) and (step // self.every) % self.splits_every == 0

    def saves_weights(self, step: int) -> bool:
        """Whether the weights after a step are saved; the last step is saved besides."""
        if self.checkpoint_every is None:
            return step == 0
        return step % self.checkpoint_every == 0

    def selects(self, name: str) -> bool:
        """Whether a layer of this name is recorded."""
        if self.layers and not re.search(self.layers, name):
            return False
        return not (self.skip_layers and re.search(self.skip_layers, name))
