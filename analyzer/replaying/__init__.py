"""Probes on the checkpoints of a finished run: what is measured, and on which weights."""

import contextlib
import functools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from analyzer.errors import AnalyzerError, NotRecordedError
from analyzer.launch import launch_of_process
from analyzer.probes import HeldBatch, Measurement, probe_named, same_draws
from analyzer.probes.landscape.ledger import PartialSurfaceError
from analyzer.probes.landscape.planes import LandscapeRequest, drawn
from analyzer.probes.sharpness import UpdateRule, rule_of
from analyzer.recording.names import RootModel, root_prefixes
from analyzer.recording.probing import Held, measured, said_of
from analyzer.storage.catalog import refuse_links
from analyzer.storage.limits import LIMITS
from analyzer.storage.parts import listing, write_table
from analyzer.storage.rows import probe_table
from analyzer.storage.run import Run
from analyzer.vocabulary.probes import PROBES

__all__ = [
    "ProbeOrder",
    "Progress",
    "Say",
    "Together",
    "checkpoints_of",
    "measure_all",
    "ranks_together",
    "sentences",
    "state_of",
]

Say: TypeAlias = Callable[[str], None]
Progress: TypeAlias = Callable[[str, int, int], None]
"""Receives what is being done, how much of it is done, and how much there is at most."""
Together: TypeAlias = Callable[[Run, int], AbstractContextManager[None]]
_PROGRESS_SECONDS, _PATIENCE_SECONDS = 10.0, 60.0
_CHECKPOINT = re.compile(r"step-(\d{12,18})\.safetensors")


@dataclass(frozen=True)
class ProbeOrder:
    """What is to be measured, on which checkpoints (a step, ``last`` or ``all``).

    ``options`` are values of the options in the probes' rows, by name; what is missing has its
    default. Existing tables are replaced where it `overwrites`. Who `helps` evaluates points of
    landscapes that another process writes, and nothing else.
    """

    names: tuple[str, ...]
    which: str = "last"
    options: Mapping[str, Any] = field(default_factory=dict)
    overwrites: bool = False
    helps: bool = False

    def __post_init__(self) -> None:
        try:
            _ = self.landscape  # refused now, not after the model was built
        except ValueError as error:
            raise AnalyzerError(str(error)) from error

    @property
    def landscape(self) -> LandscapeRequest:
        """What a landscape shows."""
        return LandscapeRequest(**self.options_of("landscape"))

    def options_of(self, name: str) -> dict[str, Any]:
        """Return the options that a probe takes."""
        row = next(probe for probe in PROBES if probe.name == name)
        known = [option.name for option in row.options]
        return {key: value for key, value in self.options.items() if key in known}

    def as_text(self) -> str:
        """Return one word for the command line of a child process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "ProbeOrder":
        """Read such a word."""
        parts = json.loads(text)
        return cls(**{**parts, "names": tuple(parts["names"])})


def sentences(say: Say) -> Progress:
    """Return what says now and then how far a landscape is."""
    told = [time.monotonic()]

    def progress(what: str, done: int, total: int) -> None:
        if time.monotonic() - told[0] > _PROGRESS_SECONDS:
            told[0] = time.monotonic()
            say(f"{what}: {done} of at most {total} points")

    return progress


@contextlib.contextmanager
def ranks_together(run: Run, step: int) -> Iterator[None]:
    """Let the ranks of a launch begin and end a landscape together; one process is on its own."""
    if launch_of_process() is None:
        yield
        return
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    torch.distributed.barrier()
    yield
    torch.distributed.barrier()


def measure_all(
    run: Run,
    held: Held,
    order: ProbeOrder,
    say: Say,
    progress: Progress,
    together: Together = ranks_together,
) -> None:
    """Measure the probes on each of the checkpoints and write their tables.

    The weights of the held model are replaced. One probe that is refused keeps none of the others
    from being measured. ``together`` holds while a landscape is evaluated, maybe by others, too.

    Raises:
        AnalyzerError: If a checkpoint does not fit, or, after the others, if a probe cannot be
            measured on this batch.
    """
    refusals: dict[tuple[str, str], list[int]] = {}
    for step, file in checkpoints_of(run, order.which).items():
        held.call.model.load_state_dict(state_of(held.call.model, file))
        held.rule = _recorded_rule(run, step)
        for name in order.names:
            place = run.path / "probes" / name / f"step-{step:012d}.parquet"
            if place.exists() and not order.overwrites:
                say(f"{name} of step {step} exists and is kept (--overwrite replaces it)")
                continue
            if order.helps and name != "landscape":
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                with together(run, step) if name == "landscape" else contextlib.nullcontext():
                    measurement = _measured(run, held, order, name, step, say, progress)
            except Exception as error:
                refusals.setdefault((name, said_of(error, held)), []).append(step)
                continue
            if order.helps:
                continue
            columns = _with_layers(run, measurement)
            table = probe_table(name, columns, measurement.metadata)
            write_table(place, table, f"probes/{name}/{place.name}")
            for left in place.parent.glob(f"*{_points_of(place).name}*"):
                left.unlink()  # the table has them all
            say(f"{name} of step {step}: {measurement.metadata['seconds']} s")
    if refusals:
        reasons = [
            f"probe {name} of step {', '.join(map(str, steps))}: {reason}"
            for (name, reason), steps in refusals.items()
        ]
        raise AnalyzerError("; ".join(reasons))


def _measured(
    run: Run, held: Held, order: ProbeOrder, name: str, step: int, say: Say, progress: Progress
) -> Measurement:
    """Measure one probe with its options; a landscape from where a killed one ended."""
    if name != "landscape":
        return measured(name, held, functools.partial(probe_named(name), **order.options_of(name)))
    points = _points_of(run.path / "probes" / name / f"step-{step:012d}.parquet")
    request, model = order.landscape, held.call.model
    needed = checkpoints_of(run, "all") if request.plane != "random" else {}
    checkpoints = {at: state_of(model, file) for at, file in needed.items()}
    if points.exists() and not order.helps:
        say(f"landscape of step {step}: resuming with the points that are done")

    def draws(batch: HeldBatch) -> Measurement:
        with same_draws(batch.model):
            return drawn(
                batch,
                request,
                step=step,
                checkpoints=checkpoints,
                resume=points,
                on_progress=functools.partial(progress, f"landscape of step {step}"),
            )

    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return measured(name, held, draws)
        except PartialSurfaceError:
            if order.helps and time.monotonic() < until:  # who writes the landscape starts over
                time.sleep(_PROGRESS_SECONDS / 100)
                continue
            if order.helps or not points.exists():
                raise
            say(
                f"landscape of step {step}: the points that are done are of another one; starting "
                "over"
            )
            points.unlink()


def _recorded_rule(run: Run, step: int) -> UpdateRule | None:
    """How the run's one optimizer moved the weights at a step, at the end as at the last one.

    None of several optimizers, groups with other rates, and what the manifest does not say.
    """
    optimizers = run.manifest.get("optimizers")
    if not isinstance(optimizers, list) or len(optimizers) != 1:
        return None
    rates = run.steps.filter(regex=r"^(step|learning_rate(_\d+)?)$").dropna(how="all", axis=1)
    rates = rates[rates["step"] <= step].drop(columns="step").dropna(how="all")
    if not len(rates) or rates.iloc[-1].nunique() != 1:
        return None
    rate = float(rates.iloc[-1].max())
    try:
        return rule_of(str(optimizers[0]["name"]), {**optimizers[0], "lr": rate})
    except (KeyError, TypeError, ValueError, IndexError):  # a folder may come from anybody
        return None


def _points_of(table: Path) -> Path:
    """Where the points of a landscape are kept until it is whole."""
    return table.with_suffix(".points")


def _with_layers(run: Run, measurement: Measurement) -> dict[str, Any]:
    """The columns with the numbers that layers have in the run."""
    columns = dict(measurement.columns)
    if "layer" in columns and "name" in columns:
        layers = run.layers
        known = dict(zip(layers["name"], layers["layer"], strict=True))
        columns["layer"] = [known.get(name) for name in columns["name"]]
    return columns


def checkpoints_of(run: Run, which: str) -> dict[int, Path]:
    """Return the requested checkpoints of a run by step: a step, ``last`` or ``all``.

    Raises:
        NotRecordedError: If there is no such checkpoint; the message lists the existing ones.
    """
    refuse_links(run.path)
    folder = run.path / "checkpoints"
    named = [match for match in map(_CHECKPOINT.fullmatch, sorted(listing(folder))) if match]
    known = {int(match[1]): folder / match[0] for match in named}
    if not known:
        raise NotRecordedError(
            f"run '{run.name}' holds no checkpoint; record with --checkpoint-every N"
        )
    if which == "all":
        return known
    if which == "last":
        return {max(known): known[max(known)]}
    if not which.isdigit():
        raise AnalyzerError(f"--step is {which!r}; expected a step, last or all")
    if int(which) not in known:
        raise NotRecordedError(
            f"run '{run.name}' holds no checkpoint of step {which}; it has those of steps "
            f"{', '.join(map(str, known))}"
        )
    return {int(which): known[int(which)]}


def state_of(model: nn.Module, file: Path) -> dict[str, Tensor]:
    """Read a checkpoint as a state dict of a model, also one of several models with prefixed names.

    Raises:
        AnalyzerError: If it is of another model, or of several that could be this one.
    """
    saved, wanted = _loaded(file), model.state_dict()
    shapes = {key: value.shape for key, value in wanted.items() if isinstance(value, Tensor)}
    prefixes = {name.removesuffix(key) for name in saved for key in shapes if name.endswith(key)}
    fitting = sorted(
        prefix
        for prefix in prefixes
        if all(
            prefix + key in saved and saved[prefix + key].shape == shape
            for key, shape in shapes.items()
        )
    )
    if not fitting:
        raise AnalyzerError(
            f"checkpoint {file.name} does not fit the model that was built again: "
            f"{_misfit(saved, shapes)}. Was the program changed since?"
        )
    own = fitting[0]
    if len(fitting) > 1:
        # With another one beside it, a model has the name of its variable.
        own = "" if "" in fitting else root_prefixes([RootModel.of(model)], is_alone=False)[0]
    if own not in fitting:
        names = ", ".join(repr(prefix.rstrip(".")) for prefix in fitting)
        raise AnalyzerError(
            f"checkpoint {file.name} holds several models of the same shape, {names}, and this is "
            "none of them by name. Give it a variable in the script, outside of functions."
        )
    # Checkpoints hold tensors only: extra state stays the model's.
    return {**wanted, **{key: saved[own + key] for key in shapes}}


def _loaded(file: Path) -> dict[str, Tensor]:
    try:
        with file.open("rb") as opened:
            header = int.from_bytes(opened.read(8), "little")
        LIMITS.check("footer_mib", header / 2**20, "its header takes")
        return load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise AnalyzerError(
            f"checkpoint {file.name} cannot be read ({error}); expected one that a recording "
            "wrote. Name another with --step"
        ) from error


def _misfit(saved: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> str:
    """The first difference between a checkpoint and a model."""
    for key, shape in shapes.items():
        found = [value.shape for name, value in saved.items() if name.endswith(key)]
        if not found:
            return f"it has no {key!r}"
        if shape not in found:
            return f"its {key!r} has shape {list(found[0])}, that of the model {list(shape)}"
    return "it has these names only in parts"
