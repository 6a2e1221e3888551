"""What a recording was asked for: the options of ``analyzer record``, checked."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from analyzer.vocabulary import PROBE_NAMES

__all__ = ["ZOO", "RecordOptions", "folders_of", "plain_folder"]

ZOO = "zoo:"
"""What a target begins with that names a built-in network."""

_COUNTS = (
    "every",
    "splits_every",
    "updates_every",
    "checkpoint_every",
    "stop_after",
    "steps",
    "batch_size",
)
_CHOICES = {
    "columns": ("all", "norms"),
    "optimizer": ("sgd", "adam", "adamw"),
    "fail_on": (None, "severe"),
}
_PROBE = re.compile(rf"({'|'.join(PROBE_NAMES)})(:[1-9][0-9]*)?")
_DATA = re.compile(r"digits|synthetic(:.+)?|cifar10:.+", re.DOTALL)


@dataclass(frozen=True)
class RecordOptions:
    """The options of one recording, as the contract describes them.

    Args:
        target: Path of a script, name of a module, or ``zoo:NAME``.
        args: The arguments of the script.
        as_module: Whether ``target`` is a module to run as ``python -m`` does.
        run: Folder of the run; None for the next free name in ``runs_dir``.
        runs_dir: Folder of the runs.
        every: Record layers and parameters at each so many steps.
        columns: ``all`` or ``norms``.
        layers: Regular expression of the layers to record; None for all.
        skip_layers: Regular expression of the layers to leave out; None for none.
        splits_every: Split gradients at each so many recorded steps.
        updates_every: Measure updates at each so many recorded steps.
        checkpoint_every: Save weights each so many steps; None for the first and the last.
        stop_after: End the training after so many steps; None to let it end itself.
        seed: Seed set before the program runs; None for 0 with model files and twins, for none
            with other scripts.
        quiet: Write nothing to stderr.
        steps: Updates of the built-in loop.
        data: ``digits``, ``synthetic`` or ``cifar10:DIR``.
        batch_size: Samples in a batch of the built-in loop.
        optimizer: ``sgd``, ``adam`` or ``adamw``.
        lr: Learning rate of the built-in loop; None for the usual one of the optimizer.
        device: Device of the built-in loop, ``auto`` for the accelerator if there is one.
        probe: Heavier measurements, ``NAME`` or ``NAME:EVERY``.
        skip_scale: Factor of every shortcut; None to leave them alone.
        twin: Whether a twin without shortcuts is recorded first.
        rescale: Whether the branches of a net without shortcuts get the original's scale.
        fail_on: ``severe`` for exit code 1 where such a finding is there; None for the script's.
        twin_of: Name of the run whose twin this is; None where it is none.
        twin_name: Name of the run of this one's twin; None where it has none.
        twin_words: What is to be said about that twin at the end.

    Raises:
        ValueError: If a value is out of range; the message names the option.
    """

    target: str
    args: tuple[str, ...] = ()
    as_module: bool = False
    run: Path | None = None
    runs_dir: Path = Path("runs")
    every: int = 1
    columns: str = "all"
    layers: str | None = None
    skip_layers: str | None = None
    splits_every: int = 10
    updates_every: int = 10
    checkpoint_every: int | None = None
    stop_after: int | None = None
    seed: int | None = None
    quiet: bool = False
    steps: int = 200
    data: str = "digits"
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float | None = None
    device: str = "auto"
    probe: tuple[str, ...] = ()
    skip_scale: float | None = None
    twin: bool = False
    rescale: bool = False
    fail_on: str | None = None
    twin_of: str | None = None
    twin_name: str | None = None
    twin_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            _expect(name, value, value is None or value >= 1, "a whole number from 1 up")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            _expect(name, value, value in choices, " or ".join(filter(None, choices)))
        for name in ("layers", "skip_layers"):
            _expect_pattern(name, getattr(self, name))
        _expect("seed", self.seed, self.seed is None or self.seed >= 0, "a whole number from 0 up")
        is_rate = self.lr is None or (math.isfinite(self.lr) and self.lr >= 0)
        _expect("lr", self.lr, is_rate, "a finite number from 0 up, such as 0.02")
        is_data = _DATA.fullmatch(self.data) is not None
        _expect("data", self.data, is_data, "digits, synthetic or cifar10:DIR")
        self._check_probes()
        self._check_twin()

    def _check_probes(self) -> None:
        for text in self.probe:
            is_probe = _PROBE.fullmatch(text) is not None
            known = f"NAME or NAME:EVERY, as paths:50, with NAME one of {', '.join(PROBE_NAMES)}"
            _expect("probe", text, is_probe, known)
        names = [text.partition(":")[0] for text in self.probe]
        for name in names:
            _expect("probe", name, names.count(name) == 1, "each probe once")

    def _check_twin(self) -> None:
        alpha = self.skip_scale
        is_factor = alpha is None or math.isfinite(alpha)
        _expect("skip_scale", alpha, is_factor, "a finite number; 0 removes the shortcuts")
        if self.twin and alpha is not None:
            raise ValueError(
                f"--twin is given with --skip-scale {alpha:g}; expected one of them: the twin has "
                "its shortcuts at 0 by itself. Leave one out."
            )
        if self.rescale and not self.twin and alpha != 0:
            raise ValueError(
                "--rescale is given without --twin; expected --twin or --skip-scale 0: it gives a "
                "net without shortcuts the original's scale. Add one of them, or leave it out."
            )


def plain_folder(run: Path) -> Path:
    """Return the folder of a run's twin, which lies beside it."""
    return run.with_name(f"{run.name}-plain")


def folders_of(options: RecordOptions) -> list[Path]:
    """Return the folders that were named for a recording; none where it takes free ones."""
    if options.run is None:
        return []
    return [options.run, *([plain_folder(options.run)] if options.twin else [])]


def _expect(name: str, value: object, is_right: bool, expected: str) -> None:
    """Refuse the value of an option that is not as expected."""
    if not is_right:
        raise ValueError(
            f"{_option(name)} is {value!r}; expected {expected}. Change it or leave it out."
        )


def _expect_pattern(name: str, pattern: str | None) -> None:
    """Refuse an option that should be a regular expression and is none."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(
            f"{_option(name)} is {pattern!r}, which is no regular expression ({error}); expected "
            "one such as 'layer1|fc'. Escape special characters with a backslash."
        ) from error


def _option(name: str) -> str:
    """Write the name of a field as its option."""
    return f"--{name.replace('_', '-')}"
