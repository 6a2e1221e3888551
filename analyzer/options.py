"""The options of a recording, each in one place: default, meaning, check, and where it applies.

``analyzer record``, the keywords of ``Recorder``, ``[tool.analyzer]`` and what the manifest stores
are generated from the fields of `RecordOptions`. A new option is its field here, and the place
where it acts.
"""

# ruff: noqa: RUF009 -- an option is a field

import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from analyzer.vocabulary.probes import PROBE_NAMES, ProbePlan

__all__ = [
    "COMMAND",
    "MODEL_FILE",
    "RECORDER",
    "ZOO",
    "Option",
    "OptionError",
    "ProbePlan",
    "RecordOptions",
    "expected_path",
    "expected_scale",
    "flag",
    "options_of",
    "with_parameters",
]

ZOO = "zoo:"
"""The prefix of a target that names a built-in network."""

RECORDER, COMMAND, MODEL_FILE = "recorder", "command", "model file"


class OptionError(ValueError):
    """An option has a value that it cannot take.

    Args:
        name: The option, as a Python keyword.
        value: What was given.
        expected: What it may be.
    """

    def __init__(self, name: str, value: object, expected: str) -> None:
        super().__init__(f"{name} is {value!r}; expected {expected}")
        self.on_command_line = (
            f"{flag(name)} is {value!r}; expected {expected}. Change it or leave it out."
        )


@dataclass(frozen=True)
class Option:
    """What is known of an option besides its name, type and default.

    Args:
        help: What it does, as the help page says it.
        scope: Where it applies: ``recorder`` (a keyword of ``Recorder``, an option of ``analyzer
            record``, stored in the manifest's ``schedule``), ``command`` (``analyzer record``
            alone) or ``model file`` (the built-in loop, stored in the manifest's ``loop``).
        metavar: What stands for its value on the help page; None for a flag.
        expected: Returns what was expected where a value (of several: each) is wrong, else None.
        is_stored: Whether the manifest has it under ``schedule`` or ``loop``.
    """

    help: str
    scope: str
    metavar: str | None = None
    expected: Callable[[Any], str | None] = lambda value: None
    is_stored: bool = True


def flag(name: str) -> str:
    """Return how the command line writes an option."""
    return f"--{name.replace('_', '-')}"


def _whole(expected: str, least: int, most: float = math.inf) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return None if is_whole and least <= value <= most else expected

    return check


_count = _whole("a whole number from 1 up", 1)


def _one_of(*choices: str) -> Callable[[Any], str | None]:
    return lambda value: None if value in choices else " or ".join(choices)


def _finite(expected: str, least: float = -math.inf) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # A whole number of more than 308 digits is none that a tensor could be multiplied by.
        is_finite = is_number and abs(value) <= sys.float_info.max
        return None if is_finite and value >= least else expected

    return check


def expected_scale(value: Any) -> str | None:
    """Return what was expected where a scale of shortcuts, or scales by join, are wrong."""
    expected = "a finite number (0 removes the shortcuts), or such numbers by join, as layer1=0"
    by_join = value if isinstance(value, Mapping) else {".": value}
    wrong = [_finite(expected)(scale) or _pattern(name) for name, scale in by_join.items()]
    return next(filter(None, wrong), None if by_join else expected)


def expected_path(value: Any) -> str | None:
    """Return what was expected where a value is the path of nothing."""
    try:
        path = os.fspath(value)
        is_path = isinstance(path, str) and path != "" and "\0" not in path
        os.fsencode(path)
    except (TypeError, UnicodeError):
        is_path = False
    return None if is_path else "the path of a folder, without NUL characters"


def _pattern(value: Any) -> str | None:
    try:
        re.compile(value).search("")  # of bytes it is none
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        return f"a regular expression such as 'layer1|fc' ({error}; a backslash escapes characters)"
    return None


def _matching(pattern: str, expected: str) -> Callable[[Any], str | None]:
    compiled = re.compile(pattern, re.DOTALL)
    return lambda value: None if compiled.fullmatch(str(value)) else expected


def _option(default: Any, *arguments: Any, **more: Any) -> Any:
    return field(default=default, metadata={"option": Option(*arguments, **more)})


@dataclass(frozen=True)
class RecordOptions:
    """The options of one recording, checked, and what they ask for in a step.

    Args:
        target: Path of a script, name of a module, or ``zoo:NAME``; empty for a ``Recorder``.
        args: The arguments of the script.
        as_module: Whether ``target`` is run as ``python -m`` runs a module.
        runs_dir: Folder of the runs.
        twin_of, twin_name: Name of the run whose twin this is, and of this one's twin, or None.
        twin_words: What is to be said about that twin at the end.
        point: The arguments of the point of a study that this is; None where it is none.

    The other fields are options; each has its meaning in its metadata.

    Raises:
        OptionError: If the value of an option is wrong.
        ValueError: If two options contradict each other.
    """

    target: str = ""
    args: tuple[str, ...] = ()
    as_module: bool = False
    runs_dir: Path = Path("runs")
    twin_of: str | None = None
    twin_name: str | None = None
    twin_words: tuple[str, ...] = ()
    point: Mapping[str, Any] | None = None

    run: Path | None = _option(
        None,
        "Folder of the new run. Default: the next free runs/<target>-<k>.",
        COMMAND,
        "DIR",
        expected_path,
    )
    every: int = _option(
        1, "Record layers and parameters at every N-th step.", RECORDER, "N", _count
    )
    columns: str = _option(
        "all",
        "Which statistics of a tensor to record: all of them, or the norms alone.",
        RECORDER,
        "all|norms",
        _one_of("all", "norms"),
    )
    layers: str | None = _option(
        None, "Record only layers whose name matches.", RECORDER, "REGEX", _pattern
    )
    skip_layers: str | None = _option(
        None, "Leave out layers whose name matches.", RECORDER, "REGEX", _pattern
    )
    max_calls: int = _option(
        64,
        "Calls of one module in a step that have rows of their own; later ones share one row.",
        RECORDER,
        "N",
        _count,
    )
    splits_every: int = _option(
        10, "Split gradients at joins at every N-th recorded step.", RECORDER, "N", _count
    )
    updates_every: int = _option(
        10, "Measure updates at every N-th recorded step.", RECORDER, "N", _count
    )
    checkpoint_every: int | None = _option(
        None, "Save the weights every N steps. Default: the first and final.", RECORDER, "N", _count
    )
    stop_after: int | None = _option(
        None, "End the training after N steps, with exit code 0.", RECORDER, "N", _count
    )
    probe: tuple[str, ...] = _option(
        (),
        "A heavier measurement before the first and each EVERY-th step and at the end; repeatable.",
        RECORDER,
        "NAME[:EVERY]",
        _matching(
            rf"({'|'.join(PROBE_NAMES)})(:[1-9][0-9]*)?",
            f"NAME or NAME:EVERY, as paths:50, with NAME one of {', '.join(PROBE_NAMES)}",
        ),
    )
    skip_scale: float | Mapping[str, float] | None = _option(
        None,
        "Multiply every shortcut by A during training, or those of a join, of a path or of a "
        "regular expression; 0 removes them. Changes the training.",
        RECORDER,
        "A|JOIN=A,...",
        expected_scale,
        is_stored=False,  # a field of its own, since readers ask for it
    )
    twin: bool = _option(
        False, "First record the same program without shortcuts, into DIR-plain.", COMMAND
    )
    rescale: bool = _option(
        False, "Give the branches of the net without shortcuts the original's scale.", COMMAND
    )
    seeds: int | None = _option(None, "Record N seeds, each into DIR-<seed>.", COMMAND, "N", _count)
    nproc_per_node: int | None = _option(
        None, "Start the script under torchrun, as N ranks of one run.", COMMAND, "N", _count
    )
    seed: int | None = _option(
        None,
        "Seed set at the start. Default: 0 for model files; a seed that the script sets wins.",
        COMMAND,
        "N",
        _whole("a whole number from 0 to 18446744073709551615 (2**64 - 1)", 0, 2**64 - 1),
    )
    resume: str | None = _option(
        None, "Continue a stopped run, as a new attempt.", RECORDER, "RUN", expected_path, False
    )
    first_step: int | None = _option(
        None,
        "With --resume: number of the first step. Default: found by its weights and loss.",
        RECORDER,
        "N",
        _whole("a whole number from 0 up", 0),
        is_stored=False,
    )
    fail_on: str | None = _option(
        None,
        "Exit 1 when a finding of this severity appears.",
        COMMAND,
        "severe",
        _one_of("severe"),
    )
    quiet: bool = _option(False, "Write nothing to stderr but the script's output.", COMMAND)
    steps: int = _option(200, "number of updates.", MODEL_FILE, "N", _count)
    data: str = _option(
        "digits",
        "what to train on.",
        MODEL_FILE,
        "digits|synthetic|cifar10:DIR",
        _matching(r"digits|synthetic(:.+)?|cifar10:[^\0]+", "digits, synthetic or cifar10:DIR"),
    )
    batch_size: int = _option(64, "samples per batch.", MODEL_FILE, "N", _count)
    optimizer: str = _option(
        "sgd", "optimizer.", MODEL_FILE, "sgd|adam|adamw", _one_of("sgd", "adam", "adamw")
    )
    lr: float | None = _option(
        None,
        "learning rate. Default: the optimizer's usual one.",
        MODEL_FILE,
        "X",
        _finite("a finite number from 0 up, such as 0.02", 0),
    )
    device: str = _option("auto", "auto, cpu, cuda, mps, ...", MODEL_FILE, "NAME")

    def __post_init__(self) -> None:
        for one in options_of():
            value, option = getattr(self, one.name), one.metadata["option"]
            if value is None and one.default is None:
                continue
            for given in value if isinstance(value, tuple) else (value,):
                if (expected := option.expected(given)) is not None:
                    raise OptionError(one.name, given, expected)
        names = [plan.name for plan in self.plans]
        for name in names:
            if names.count(name) > 1:
                raise OptionError("probe", name, "each probe once")
        if self.resume is not None and (self.run is not None or self.twin or self.seeds):
            other = "--twin or --seeds" if self.run is None else f"--run {self.run}"
            raise ValueError(
                f"--resume {self.resume} is given with {other}; it has a run. Leave one out."
            )
        if self.first_step is not None and self.resume is None:
            raise ValueError(
                f"--first-step {self.first_step} is given without --resume. Leave it out."
            )
        if self.twin and self.skip_scale is not None:
            raise ValueError(
                f"--twin is given with --skip-scale {self.skip_scale}; expected one of them: the "
                "twin has its shortcuts at 0 by itself. Leave one out."
            )
        if self.rescale and not self.twin and self.skip_scale != 0:
            raise ValueError(
                "--rescale is given without --twin; expected --twin or --skip-scale 0: it gives a "
                "net without shortcuts the original's scale. Add one of them, or leave it out."
            )

    @classmethod
    def for_recorder(cls, given: Mapping[str, Any], run: Any = None) -> "RecordOptions":
        """Return the options of a ``Recorder`` from its keywords, and the folder of its run.

        Raises:
            TypeError: If a keyword is not an option of the recorder.
            OptionError: If a value is wrong.
        """
        known = {one.name for one in options_of(RECORDER)}
        for name in given:
            if name not in known:
                raise TypeError(f"Recorder() got an unexpected keyword argument {name!r}")
        probe = given.get("probe", ())
        probe = tuple(probe) if isinstance(probe, list | tuple | set) else (probe,)
        return cls(**{**given, "probe": probe, "run": run})

    @property
    def plans(self) -> tuple[ProbePlan, ...]:
        """The probes, and when each is measured."""
        parts = [text.partition(":") for text in self.probe]
        return tuple(ProbePlan(name, int(every) if every else None) for name, _, every in parts)

    def of_recorder(self) -> dict[str, Any]:
        """Return the keywords of a ``Recorder`` with these options."""
        return {one.name: getattr(self, one.name) for one in options_of(RECORDER)}

    def stored(self, scope: str) -> dict[str, Any]:
        """Return what a manifest holds of the options of a scope."""
        values = {
            one.name: getattr(self, one.name)
            for one in options_of(scope)
            if one.metadata["option"].is_stored
        }
        if "probe" in values:
            del values["probe"]
            values["probes"] = [asdict(plan) for plan in self.plans]
        return values

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
        """Whether the weights before a step are saved; those after the last one always are."""
        if self.checkpoint_every is None:
            return step == 0
        return step % self.checkpoint_every == 0

    def selects(self, name: str) -> bool:
        """Whether a layer of this name is recorded."""
        if self.layers and not re.search(self.layers, name):
            return False
        return not (self.skip_layers and re.search(self.skip_layers, name))


def with_parameters(
    signature: inspect.Signature, parameters: Iterable[inspect.Parameter]
) -> inspect.Signature:
    """Return a signature with parameters in place of its ``**keywords``."""
    written = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    return signature.replace(parameters=[*written, *parameters])


def options_of(scope: str | None = None) -> "list[Field[Any]]":
    """Return the fields of `RecordOptions` that are options, those of one scope or all."""
    found = [one for one in fields(RecordOptions) if "option" in one.metadata]
    return [one for one in found if scope in (None, one.metadata["option"].scope)]
