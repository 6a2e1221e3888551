"""The recorder that users put around their training loop."""

import contextlib
import inspect
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from analyzer.errors import AnalyzerError, RunExistsError, StopTraining
from analyzer.options import RECORDER, RecordOptions, options_of, with_parameters
from analyzer.probes import Measurement
from analyzer.recording.checkpoints import saver
from analyzer.recording.discovery import Discovery
from analyzer.recording.names import unwrapped
from analyzer.recording.probing import Probing
from analyzer.recording.provenance import (
    device_name,
    environment,
    git_state,
    save_random_states,
)
from analyzer.recording.skip_scaling import SkipScaling
from analyzer.recording.training import Training
from analyzer.storage.schema import TABLES
from analyzer.storage.writer import RunWriter

__all__ = ["Recorder"]


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
        RunExistsError: If the folder exists.
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
        self.path = _run_folder(model, run, exist or ("new" if _in_notebook() else "raise"))
        self._model = model
        self._scaling: SkipScaling | None = None
        self._discovery: Discovery | None = None
        alpha = self.options.skip_scale
        scaled = {} if alpha is None else {"skip_scale": alpha}
        self._manifest = scaled | (manifest or {})
        self._watch = watch
        self._warn = warn or _python_warning
        self._writer: RunWriter | None = None
        self._training: Training | None = None
        self._problems: list[str] = []
        self._saved_step = -1
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
            raise AnalyzerError(
                f"the recorder of run '{self.path}' was started already; make a new one"
            )
        self._started = time.perf_counter()
        self._open_writer()
        self._probing = Probing(
            self.options.plans,
            self._write_probe,
            on_batch=self._note_batch,
            on_problem=self._note_problem,
        )
        training = Training(
            self.options,
            on_step=self._write_step,
            on_tables=self._write_tables,
            on_boundary=self._pass_boundary,
            on_problem=self._note_problem,
            probing=self._probing,
            adopts_optimizers=self._model is None,
        )
        self._training = training
        training.start()
        if self._model is not None:
            training.models.add(self._model)
        else:
            self._discovery = Discovery(training)
        if (alpha := self.options.skip_scale) is not None:
            self._scaling = SkipScaling(alpha, self._model, on_problem=self._note_problem)
            self._scaling.start()

    def _open_writer(self) -> None:
        manifest = {
            "name": self.path.name,
            **environment(),
            "git": git_state(Path.cwd()),
            "schedule": self.options.stored(RECORDER),
            **self._manifest,
        }
        try:
            self._writer = RunWriter(self.path, manifest, warn=self._warn)
            self._keep_random_states()
        except RunExistsError:
            raise
        except OSError as error:
            self._warn(
                f"cannot make the run folder ({error.strerror}); the training continues, nothing "
                "is recorded: choose another folder with --run"
            )

    def _keep_random_states(self) -> None:
        """A script may be started again for a probe, with the random numbers of this time."""
        if self._model is None:
            # Where nothing can be written the writer says so, once.
            with contextlib.suppress(OSError, SafetensorError):
                save_random_states(self.path)

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
        for name, value in values.items():
            if name in TABLES["steps"].names and name != "epoch":
                raise ValueError(
                    f"{name!r} is a column that the recorder writes itself; choose another name"
                )
            if isinstance(value, Tensor):
                if value.numel() != 1:
                    raise ValueError(
                        f"{name!r} is a tensor of shape {list(value.shape)}; expected one element"
                    )
            elif not isinstance(value, float | int | bool | str) and not hasattr(value, "item"):
                raise TypeError(
                    f"{name!r} is a {type(value).__name__}; expected a number, a text or a "
                    "one-element tensor"
                )
        self.training.log(
            {
                name: value if isinstance(value, Tensor | str | bool) else _number(value)
                for name, value in values.items()
            }
        )

    def _write_step(self, make: Any) -> None:
        if self._writer is not None:
            self._writer.add(make)

    def _write_tables(self) -> None:
        if self._writer is not None:
            tables = self.training.models.tables()
            self._writer.write_layers(tables["layers"])
            self._writer.write_parameters(tables["parameters"])
            self._writer.write_joins(tables["joins"])
            device = self.training.models.device()
            if device is not None:
                self._writer.update_manifest(
                    device=device_name(device), dtype=", ".join(self.training.models.dtypes())
                )

    def _write_probe(self, name: str, step: int, measurement: Measurement) -> None:
        if self._writer is None:
            return
        columns = dict(measurement.columns)
        if "layer" in columns and "name" in columns:
            columns["layer"] = self.training.models.layers.numbered(columns["name"])
        self._writer.write_probe(name, step, columns, measurement.metadata)

    def _note_batch(self, digest: str) -> None:
        if self._writer is not None and digest:
            self._writer.update_manifest(first_batch=digest)

    def _pass_boundary(self, step: int) -> None:
        if self.options.saves_weights(step):
            self._save_weights(step)
        if self._watch is not None and not self._is_closed:
            self._watch(step)

    def _save_weights(self, step: int) -> None:
        save = saver(self.training.models.layers, step)
        if self._writer is None or not self.training.models.layers.roots:
            return
        if isinstance(save, str):
            self._note_problem(save)
        else:
            self._writer.write_checkpoint(step, save)
        self._saved_step = step

    def _note_problem(self, sentence: str) -> None:
        if sentence not in self._problems:
            self._problems.append(sentence)
            if self._writer is not None:
                self._writer.update_manifest(not_recorded=list(self._problems))

    # --- end ---------------------------------------------------------------------------------

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        stopped = isinstance(error, StopTraining)
        if error is None or stopped:
            self.close()
        elif isinstance(error, KeyboardInterrupt):
            self.close("interrupted")
        else:
            self.close("failed", f"{type(error).__name__}: {error}")
        return stopped

    def close(self, status: str = "finished", error: str | None = None) -> None:
        """End the recording; a second call does nothing.

        Args:
            status: ``finished``, ``failed`` or ``interrupted``.
            error: What went wrong, when something did.
        """
        if self._is_closed or self._training is None:
            return
        self._is_closed = True
        self.stop_looking()
        if self._scaling is not None:
            self._scaling.stop()
        training = self._training
        training.finish(measures=status == "finished")
        last = training.steps.count - 1
        if last >= 0 and last != self._saved_step and status != "failed":
            self._save_weights(last)
        self.seconds = time.perf_counter() - self._started
        if self._writer is not None:
            self._writer.close(
                status,
                error,
                steps=training.steps.count,
                num_layers=len(training.models.layers),
                num_joins=len(training.splits.table),
                seconds=self.seconds,
                recorder_seconds=self.overhead_seconds,
                probe_seconds=training.probing.seconds,
            )

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
        if self._writer is None:
            return "the run folder could not be made"
        return self._writer.failed


def _described() -> str:
    """The options of the recorder, as its docstring has them."""
    lines = []
    for one in options_of(RECORDER):
        option = one.metadata["option"]
        values = f" ({option.metavar})" if option.metavar else ""
        lines.append(f"        {one.name}{values}: {option.help} Default: {one.default!r}.")
    return "\n".join(lines)


Recorder.__signature__ = with_parameters(  # type: ignore[attr-defined]
    inspect.signature(Recorder),
    (
        inspect.Parameter(
            one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type
        )
        for one in options_of(RECORDER)
    ),
)
Recorder.__doc__ = (Recorder.__doc__ or "").replace(
    "    Raises:", f"    Options:\n{_described()}\n\n    Raises:", 1
)


def _number(value: Any) -> float | int:
    plain = value.item() if hasattr(value, "item") else value
    return int(plain) if isinstance(plain, int) else float(plain)


def _python_warning(message: str) -> None:
    warnings.warn(f"analyzer: {message}", RuntimeWarning, stacklevel=2)


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules


def _run_folder(model: nn.Module | None, run: str | os.PathLike[str] | None, exist: str) -> Path:
    """The folder to write to, which does not exist."""
    if run is None:
        stem = "run" if model is None else type(unwrapped(model)).__name__.lower()
        runs = Path(os.environ.get("ANALYZER_RUNS", "runs"))
        return next(path for k in range(sys.maxsize) if not (path := runs / f"{stem}-{k}").exists())
    path = Path(run)
    if not path.exists() or exist == "use":
        return path
    if exist == "raise":
        raise RunExistsError(
            f"run folder '{path}' exists; a run is never overwritten: "
            'choose another folder, or pass exist="new"'
        )
    free = next(
        candidate
        for k in range(1, sys.maxsize)
        if not (candidate := path.with_name(f"{path.name}-{k}")).exists()
    )
    print(f"analyzer: run folder '{path}' exists; recording into '{free}'", file=sys.stderr)
    return free
