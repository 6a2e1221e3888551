"""One `analyzer record` from its options to its last line."""

import atexit
import contextlib
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analyzer.cli.record_options import RecordOptions
from analyzer.errors import AnalyzerError, ScriptError
from analyzer.script import Ending, run_program, when_imported

__all__ = ["record", "record_zoo"]

_OPTIONS = (
    "every",
    "columns",
    "layers",
    "skip_layers",
    "splits_every",
    "updates_every",
    "checkpoint_every",
    "stop_after",
)


def record(options: RecordOptions) -> int:
    """Record what the options name; return the exit code, or end the process as the script would.

    Nothing heavy is imported before the script imports torch, so that the environment variables
    that it sets at its top act as they would without the recorder.

    Raises:
        ScriptError: If the target is neither a training script nor a model file.
        RunExistsError: If the run folder exists.
    """
    session = _Session(options)
    try:
        if options.target.startswith("zoo:"):
            return session.train_zoo()
        ending = session.run_script()
        if session.trained or ending.exit_code != 0:
            session.end_script(ending)
            ending.leave()
        return session.train_model_file(ending.namespace)
    except AnalyzerError:
        session.remove_empty_folder()
        raise


def record_zoo(options: RecordOptions, max_norm: float | None = None) -> int:
    """Train and record a built-in network, with gradients clipped to ``max_norm`` where given."""
    return _Session(options).train_zoo(max_norm)


class _Session:
    """The run folder, the recorder, and what is said about them on stderr."""

    def __init__(self, options: RecordOptions) -> None:
        self._options = options
        self.run = options.run or _free_folder(options.runs_dir, _stem(options))
        self._recorder: Any = None
        self._discovery: Any = None
        self._last_words: list[str] = []
        self._pid = os.getpid()

    # --- training scripts --------------------------------------------------------------------

    def run_script(self) -> Ending:
        """Run the target as a program, recording from the moment at which it has torch."""
        # Registered before the script registers anything, so that it is called last: what the
        # recorder says comes after all that the script says.
        atexit.register(self._say_last_words)
        arrival = when_imported("torch", self._begin)
        try:
            return run_program(
                self._options.target, self._options.args, as_module=self._options.as_module
            )
        finally:
            arrival.cancel()
            if self._discovery is not None:
                self._discovery.stop()

    @property
    def trained(self) -> bool:
        """Whether a backward pass was seen."""
        return self._recorder is not None and self._recorder.training.has_trained

    def _begin(self) -> None:
        """Start to record; a failure here must not become one of the script's `import torch`."""
        try:
            self._start_recorder()
        except Exception as error:
            self._recorder = None
            self._say(f"cannot record ({type(error).__name__}: {error}); the script goes on")

    def _start_recorder(self) -> None:
        from analyzer.recording.discovery import Discovery

        if self._options.seed is not None:
            from analyzer.networks.loop import seed_everything

            seed_everything(self._options.seed)
        self._recorder = self._new_recorder(None, self._manifest("script"))
        self._recorder.start()
        self._discovery = Discovery(self._recorder.training)

    def end_script(self, ending: Ending) -> None:
        """Close the run and say what it holds, or that it failed before there was anything."""
        from analyzer.recording.stopping import StopTraining

        status, error = "finished", None
        if isinstance(ending.exception, KeyboardInterrupt):
            status = "interrupted"
        elif ending.exit_code != 0:
            status = "failed"
            error = f"{type(ending.exception).__name__}: {ending.exception}"
        if self._recorder is None:
            self._write_failed_run(status, error)
            self._last_words = [
                f"the script ended before it trained; kept as {status} in {self.run}"
            ]
            return
        self._recorder.close(status, error)
        if isinstance(ending.exception, StopTraining):
            self._last_words.append(f"stopped after {ending.exception.steps} steps, as asked")
        self._last_words.extend(self._result(status))

    def _write_failed_run(self, status: str, error: str | None) -> None:
        from analyzer.storage.writer import RunWriter

        created = {"created": datetime.now(UTC).isoformat(), "steps": 0}
        with contextlib.suppress(OSError):
            writer = RunWriter(self.run, self._manifest("script") | created)
            writer.close(status, error)

    # --- model files and zoo networks --------------------------------------------------------

    def train_zoo(self, max_norm: float | None = None) -> int:
        """Train a built-in network with the built-in loop; clip gradients to ``max_norm``."""
        from analyzer.networks.data import dataset
        from analyzer.networks.loop import seed_everything
        from analyzer.networks.zoo import zoo

        name = self._options.target.removeprefix("zoo:")
        seed = self._seed()
        seed_everything(seed)
        data = dataset(self._options.data, seed=seed)
        channels, *size = data.shape if len(data.shape) == 3 else (data.shape[0], 1)
        model = zoo(
            name,
            in_channels=channels,
            num_classes=data.num_classes,
            image_size=size[0],
            seed=seed,
        )
        return self._train(model, data, {}, "zoo", max_norm)

    def train_model_file(self, namespace: Mapping[str, Any]) -> int:
        """Train the model that a file defines with the built-in loop."""
        from analyzer.networks.data import dataset
        from analyzer.networks.loop import seed_everything

        self._discard()
        seed_everything(self._seed())
        model = _model_of(namespace, self._options.target)
        data = None if "batches" in namespace else dataset(self._options.data, seed=self._seed())
        return self._train(model, data, namespace, "model file")

    def _discard(self) -> None:
        """Forget the recording of a file that did not train; its run folder holds nothing."""
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None
        shutil.rmtree(self.run, ignore_errors=True)

    def _train(
        self,
        model: Any,
        data: Any,
        namespace: Mapping[str, Any],
        kind: str,
        max_norm: float | None = None,
    ) -> int:
        from torch.nn.functional import cross_entropy

        from analyzer.cli.progress import training_progress
        from analyzer.networks import loop
        from analyzer.networks.data import batches

        options = self._options
        device = loop.choose_device(options.device)
        model.to(device)
        if "build_optimizer" in namespace:
            optimizer = namespace["build_optimizer"](model)
        else:
            optimizer = loop.optimizer(options.optimizer, model, options.lr)
        if data is None:
            stream = namespace["batches"]()
        else:
            stream = batches(data, options.batch_size, seed=self._seed(), device=device)
        manifest = self._manifest(kind) | {
            "seed": self._seed(),
            "data": None if data is None else options.data,
            "batch_size": None if data is None else options.batch_size,
            "optimizer": type(optimizer).__name__,
        }
        self._recorder = self._new_recorder(model, manifest)
        with self._recorder as recorder, training_progress(options.steps, options.quiet) as tick:

            def on_step(step: int, loss: Any) -> None:
                epoch = getattr(stream, "epoch", None)
                if epoch is not None:
                    recorder.log(epoch=epoch)
                tick(step)

            loop.train(
                model,
                stream,
                steps=options.steps,
                loss=namespace.get("loss", cross_entropy),
                optimizer=optimizer,
                device=device,
                max_norm=max_norm,
                on_step=on_step,
            )
        for sentence in self._result("finished"):
            self._say(sentence)
        return 0

    def remove_empty_folder(self) -> None:
        """Leave nothing behind where nothing was recorded."""
        with contextlib.suppress(OSError):
            self.run.rmdir()

    # --- common ------------------------------------------------------------------------------

    def _seed(self) -> int:
        return 0 if self._options.seed is None else self._options.seed

    def _new_recorder(self, model: Any, manifest: dict[str, Any]) -> Any:
        from analyzer.recording.recorder import Recorder

        schedule = {name: getattr(self._options, name) for name in _OPTIONS}
        return Recorder(model, self.run, manifest=manifest, warn=self._say, exist="use", **schedule)

    def _manifest(self, kind: str) -> dict[str, Any]:
        from analyzer.recording.command_line import portable_argv

        options = self._options
        target = ["-m", options.target] if options.as_module else [options.target]
        return {
            "kind": kind,
            "argv": portable_argv([*target, *options.args], Path.cwd()),
            "seed": options.seed,
        }

    def _say(self, sentence: str) -> None:
        if not self._options.quiet:
            sys.stderr.write(f"analyzer: {sentence}\n")
            sys.stderr.flush()

    def _say_last_words(self) -> None:
        if os.getpid() == self._pid:  # not in a process that the script forked
            for sentence in self._last_words:
                self._say(sentence)

    def _result(self, status: str) -> list[str]:
        """What was recorded, what it cost, and the command that shows it."""
        recorder = self._recorder
        if not self.run.exists():
            return []
        training = recorder.training
        share = training.capture.seconds / max(recorder.seconds, 1e-9)
        failure = [] if training.failure is None else [training.failure]
        size = sum(f.stat().st_size for f in self.run.rglob("*") if f.is_file()) / 2**20
        return [
            *failure,
            f"recorded {training.num_steps} steps, {len(training.layers)} layers, "
            f"{len(training.parameters)} parameters into {self.run} ({status}, "
            f"{recorder.seconds:.1f} s, {share:.0%} of it recording, {size:.1f} MiB); "
            f"see it with: analyzer show {self.run}",
        ]


def _stem(options: RecordOptions) -> str:
    if options.target.startswith("zoo:"):
        return options.target.removeprefix("zoo:")
    if options.as_module:
        return options.target.rpartition(".")[2]
    return Path(options.target).stem or "run"


def _free_folder(runs: Path, stem: str) -> Path:
    """The next free ``<runs>/<stem>-<k>``; made at once, so that no other process takes it."""
    for k in itertools.count():
        path = runs / f"{stem}-{k}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:
            pass  # a read-only folder: the recorder says so, and the training goes on
        return path
    raise AssertionError


def _model_of(namespace: Mapping[str, Any], target: str) -> Any:
    """The module that a model file defines."""
    import torch

    found = ", ".join(sorted(name for name in namespace if not name.startswith("_"))) or "nothing"
    model = namespace.get("model")
    if isinstance(model, torch.nn.Module):
        return model
    build: Callable[[], Any] | None = namespace.get("build_model")
    if callable(build):
        built = build()
        if isinstance(built, torch.nn.Module):
            return built
        raise ScriptError(
            f"build_model() of '{target}' returned a {type(built).__name__}; expected a "
            "torch.nn.Module to train"
        )
    raise ScriptError(
        f"'{target}' ran no backward pass and defines {found}; expected a training script, or a "
        "file that defines `model` (a torch.nn.Module) or `build_model()`"
    )
