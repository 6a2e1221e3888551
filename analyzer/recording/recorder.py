"""The recorder that users put around their training loop."""

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from analyzer.errors import AnalyzerError, StopTraining
from analyzer.launch import restarts
from analyzer.options import RECORDER, RecordOptions
from analyzer.probes import Measurement
from analyzer.recording.checkpoints import Checkpoints, FirstWeights
from analyzer.recording.discovery import Discovery
from analyzer.recording.forward_calls import ForwardCalls
from analyzer.recording.part import logged
from analyzer.recording.probing import Probing
from analyzer.recording.provenance import (
    RANDOM_STATES,
    environment,
    git_state,
    run_folder,
    saver_of_random_states,
    takes_options,
)
from analyzer.recording.resuming import Resumed
from analyzer.recording.skip_scaling import SkipScaling
from analyzer.recording.training import Training
from analyzer.storage.writer import RunWriter

__all__ = ["Recorder"]


@takes_options
class Recorder:
    """Records a training: a context manager around an unchanged loop.

    Examples:
        >>> with Recorder(model, "runs/mine", every=1) as recorder:  # doctest: +SKIP
        ...     train(model)
        ...     recorder.log(accuracy=0.93)

    Steps open and close by themselves, with the backward passes and the updates of any
    ``torch.optim`` optimizer; weights, outputs and random states are those of an unrecorded run,
    and no hook is left behind.

    Args:
        model: The model that is trained; None to find the models that the program trains, as the
            command line does.
        run: Folder of the run; must not exist. Default: the next free ``runs/<class name>-<k>``.
        exist: What to do when the folder exists: ``"raise"``, or ``"new"`` to take the next free
            name and say so (the default in notebooks), or ``"use"`` for an empty folder that the
            caller made.
        manifest: Further fields of ``run.json``.
        watch: Called with each step after its update, before the next forward pass; it may raise
            `StopTraining` to end the training there.
        warn: Receives a sentence when something cannot be recorded. Default: a Python warning.
        **options: Options of ``analyzer record``, such as ``every=10``; see
            `analyzer.options.RecordOptions` and ``help(Recorder)``.

    Raises:
        RunExistsError: If the folder exists, or the run to resume is still being recorded.
        AnalyzerError: If the run to resume cannot be continued, or its model is another.
        TypeError: If ``model`` is not a module, or an option does not exist.
        ValueError: If the value of an option is out of range.
    """

    def __init__(
        self,
        model: nn.Module | None,
        run: str | os.PathLike[str] | None = None,
        *,
        exist: str | None = None,
        manifest: dict[str, Any] | None = None,
        watch: Callable[[int], None] | None = None,
        warn: Callable[[str], None] | None = None,
        **options: Any,
    ) -> None:
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(
                f"model is a {type(model).__name__}; expected a torch.nn.Module to record"
            )
        if exist not in (None, "raise", "new", "use"):
            raise ValueError(f"exist is {exist!r}; expected 'raise', 'new' or 'use'")
        self.options = RecordOptions.for_recorder(options, run)
        self.path = run_folder(model, run, exist, self.options.resume)
        is_new = self.options.resume is None and not restarts(self.path)
        self.resumed = None if is_new else Resumed(self.path)
        if self.resumed is not None:
            self.options = self.resumed.options(self.options)
        self._model = model
        self._scaling: SkipScaling | None = None
        self._discovery: Discovery | None = None
        self.forward: ForwardCalls | None = None
        alpha = self.options.skip_scale
        alpha = dict(alpha) if isinstance(alpha, Mapping) else alpha
        self._manifest = ({} if alpha is None else {"skip_scale": alpha}) | (manifest or {})
        self._watch = watch
        self._warn = warn or _python_warning
        self._writer: RunWriter | None = None
        self._training: Training | None = None
        self._problems: list[str] = self.resumed.problems if self.resumed is not None else []
        self._checkpoints = Checkpoints(
            self.options,
            write=self._write_checkpoint,
            warn=self._warn,
            on_problem=self.note_problem,
        )
        self._is_closed = False
        self._started = time.perf_counter()
        self.seconds = 0.0

    # --- beginning ---------------------------------------------------------------------------

    def __enter__(self) -> "Recorder":
        self.start()
        return self

    def start(self) -> None:
        """Open the run and begin to record."""
        if self._training is not None:
            raise AnalyzerError(f"the recorder of '{self.path}' was started already; make another")
        if self.resumed is not None and self._model is not None:
            self.resumed.check_model(self._model)
        self._started = time.perf_counter()
        self._open_writer()
        probing = Probing(
            self.options.plans,
            self._write_probe,
            on_batch=self._note_batch,
            on_problem=self.note_problem,
            may_measure=lambda: self._writer is None or self._writer.rank.measures(),
        )
        training = Training(
            self.options,
            on_step=self._write_step,
            on_tables=self._write_tables,
            on_boundary=self._pass_boundary,
            on_problem=self.note_problem,
            probing=probing,
            adopts_optimizers=self._model is None,
        )
        self._training = training
        training.start()
        if self.resumed is not None:
            training.resume(self.resumed, self._warn)
        if self._model is not None:
            training.models.add(self._model)
        else:
            self._discovery = Discovery(training)
            self.forward = ForwardCalls(self.options, training.capture)
        if (alpha := self.options.skip_scale) is not None:
            self._scaling = SkipScaling(alpha, self._model, on_problem=self.note_problem)
            self._scaling.start()

    def _open_writer(self) -> None:
        manifest = {
            "name": self.path.name,
            **environment(),
            "git": git_state(Path.cwd()),
            "schedule": self.options.stored(RECORDER),
            **self._manifest,
        }
        rank = 0 if self.resumed is None else self.resumed.rank
        if self.resumed is not None:
            manifest = self.resumed.begun(manifest)
        try:
            # The program may go to another working folder.
            folder = Path(os.path.abspath(self.path))
            self._writer = RunWriter(folder, manifest, rank=rank, warn=self._warn)
            # A probe may start the script again, with these numbers.
            if self._model is None and self._writer.rank.number == 0 and not rank:
                self._writer.write_file(RANDOM_STATES, saver_of_random_states())
        except OSError as error:
            self._warn(
                f"cannot make the run folder ({error.strerror}); the training continues, nothing "
                "is recorded: choose another folder with --run"
            )

    # --- while it runs -----------------------------------------------------------------------

    @property
    def training(self) -> Training:
        """The state of the recorded training."""
        if self._training is None:
            raise AnalyzerError("the recorder was not started; use it as `with Recorder(...)`")
        return self._training

    def add_model(self, model: nn.Module) -> None:
        """Record one more model from now on, under names that begin with its variable's name."""
        self.training.models.add(model)

    def log(self, **values: float | int | bool | str | Tensor) -> None:
        """Add extra columns to the current step.

        Args:
            **values: Numbers, texts or one-element tensors (which are not waited for).

        Raises:
            AnalyzerError: If the run is closed.
            ValueError: If a name is a column that the recorder writes itself.
            TypeError: If a value is of another type.
        """
        if self._is_closed:
            raise AnalyzerError(
                f"run '{self.path}' is closed; log inside the `with` block of its recorder"
            )
        self.training.log(logged(values))

    def _write_step(self, make: Any) -> None:
        if self._writer is not None:
            self._writer.add(make if self.resumed is None else partial(self.resumed.record, make))

    def _write_static(self, tables: dict[str, list[dict[str, Any]]]) -> None:
        if self._writer is not None:
            if self.resumed is not None:
                tables = self.resumed.tables(tables)
                self._writer.update_manifest(attempts=self.resumed.said)
            self._writer.write_layers(tables["layers"])
            self._writer.write_parameters(tables["parameters"])
            self._writer.write_joins(tables["joins"])
            self._writer.write_edges(tables["edges"])

    def _write_tables(self) -> None:
        if self._writer is not None and not (self.resumed and self.resumed.first is None):
            self._write_static(self.training.models.tables())
            sentence = self.training.models.unmatched()
            if sentence and sentence not in self._problems:
                self.note_problem(sentence)
                self._warn(sentence)
            if self._writer.rank.is_one_of_many:
                self._writer.update_manifest(**self.training.models.of_ranks())
            self._writer.update_manifest(**self.training.models.facts())

    def _write_probe(self, name: str, step: int, measurement: Measurement) -> None:
        if self._writer is None:
            return
        columns = dict(measurement.columns)
        if "layer" in columns and "name" in columns:
            columns["layer"] = self.training.models.layers.numbered(columns["name"])
        if self.resumed is not None:
            columns = self.resumed.columns(columns)
        self._writer.write_probe(name, step, columns, measurement.metadata)

    def _note_batch(self, digest: str) -> None:
        if self._writer is not None and digest and self.resumed is None:
            self._writer.update_manifest(first_batch=digest)

    def _pass_boundary(self, step: int, first: FirstWeights | None) -> None:
        if self._writer is not None:
            if not step & (step - 1):  # ever more rarely
                self._writer.update_manifest(**self.training.conditions.fields())
            self._checkpoints.pass_boundary(self.training.models.layers, step, first)
        if self._watch is not None and not self._is_closed:
            self._watch(step)

    def _write_checkpoint(self, step: int, save: Callable[[Path], object]) -> None:
        if self._writer is not None:
            self._writer.write_checkpoint(step, save)

    def note_problem(self, sentence: str) -> None:
        """Add what is not recorded, and why, to the manifest."""
        if sentence not in self._problems:
            self._problems.append(sentence)
            if self._writer is not None:
                self._writer.update_manifest(not_recorded=list(self._problems))

    # --- end ---------------------------------------------------------------------------------

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        stopped = isinstance(error, StopTraining)
        if error is None or stopped:
            self.close()
        elif isinstance(error, KeyboardInterrupt):
            self.close("interrupted")
        else:
            self.close("failed", f"{type(error).__name__}: {error}")
        return stopped

    def close(self, status: str = "finished", error: str | None = None, **fields: Any) -> None:
        """End the recording; a second call does nothing.

        Args:
            status: ``finished``, ``failed`` or ``interrupted``.
            error: What went wrong, when something did.
            fields: More fields of ``run.json``.
        """
        if self._is_closed or self._training is None:
            return
        self._is_closed, training = True, self._training
        self.stop_looking()
        if self._scaling is not None:
            self._scaling.stop()
        training.finish(measures=status == "finished")
        if self.forward is not None:
            self._write_forward(self.forward)
        if training.steps.count and status != "failed" and self._writer is not None:
            self._checkpoints.save(training.models.layers, training.steps.count)
        training.models.release()
        self._close_writer(status, error, **fields)

    def _close_writer(self, status: str, error: str | None, **fields: Any) -> None:
        self.seconds = time.perf_counter() - self._started
        if self._writer is None:
            return
        if self.resumed is not None and self.resumed.first is None:
            return self._writer.withdraw()
        about: dict[str, Any] = {
            "steps": self.counts["steps"],
            "num_layers": self.counts["layers"],
            "num_joins": len(self.training.splits.table),
            "seconds": self.seconds,
            "recorder_seconds": self.overhead_seconds,
            "probe_seconds": self.training.probing.seconds,
        }
        if self.resumed is not None:
            about = self.resumed.ended(about, status, error)
        fields = self.training.conditions.fields(is_last=True) | fields
        self._writer.close(status, error, **about, **fields)

    def interrupt(self, status: str, error: str | None, *, is_busy: bool) -> None:
        """End the recording at any moment, after which the process dies.

        The open step is not recorded in the middle of the recorder's own work (``is_busy``).
        """
        if not is_busy:
            with contextlib.suppress(Exception):  # whatever torch was in the middle of
                self.close(status, error)
        self._is_closed = True
        self._close_writer(status, error)

    @property
    def has_trained(self) -> bool:
        """Whether a backward pass or an update of an optimizer was seen."""
        is_training = self.forward is not None and self.forward.is_training
        return is_training or self.training.has_trained

    @property
    def counts(self) -> dict[str, int]:
        """How many steps, layers and parameters there are, of the training or of the calls."""
        forward = self.forward
        return forward.counts if forward and forward.steps else self.training.counts

    def _write_forward(self, forward: ForwardCalls) -> None:
        """Write the calls of models of a program that did not train, and what they leave out."""
        for sentence in forward.finish():
            self.note_problem(sentence)
        if not forward.steps or self.resumed is not None:
            return
        for make in forward.steps:
            self._write_step(make)
        self._write_static(forward.tables)
        if self._writer is not None:
            self._writer.update_manifest(device=forward.device, dtype=forward.dtype)

    def abandon(self) -> None:
        """Record nothing in this process, which was forked; the run is the other one's."""
        if self._is_closed or self._training is None:
            return
        self._is_closed = True
        self._writer = None
        self.stop_looking()
        if self.forward is not None:
            self.forward.finish()
        self._training.give_up(ProcessLookupError("it was forked"))
        self._training.finish()

    def look_at(self, module: nn.Module, args: Any) -> None:
        """Look for the model of a call that had begun before the recorder was started."""
        if self._discovery is not None:
            self._discovery.look(module, args)

    def stop_looking(self) -> None:
        """Find no more models; the program that trained them has ended."""
        if self._discovery is not None:
            self._discovery.stop()

    @property
    def overhead_seconds(self) -> float:
        """What the recorder cost the training, without probes."""
        return self.training.capture.seconds

    @property
    def storage_failure(self) -> str | None:
        """Why nothing more could be written; None when all went well."""
        return self._writer.failed if self._writer else "the run folder could not be made"


def _python_warning(message: str) -> None:
    warnings.warn(f"analyzer: {message}", RuntimeWarning, stacklevel=2)
