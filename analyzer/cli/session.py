"""One `analyzer record` from its options to its last line."""

import atexit
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analyzer.cli.record_options import RecordOptions
from analyzer.cli.targets import free_folder, run_stem
from analyzer.errors import AnalyzerError
from analyzer.script import Ending, run_program, when_imported

__all__ = ["record", "record_zoo"]

_SECONDS_BETWEEN_LOOKS = 5.0
_OPTIONS = (
    "every",
    "columns",
    "layers",
    "skip_layers",
    "splits_every",
    "updates_every",
    "checkpoint_every",
    "stop_after",
    "probe",
)


def record(options: RecordOptions) -> int:
    """Record what the options name; return the exit code, or end the process as the script would.

    Nothing heavy is imported before the script imports torch, so that the environment variables
    that it sets at its top act as they would without the recorder.

    Raises:
        ScriptError: If the target is neither a training script nor a model file.
        RunExistsError: If the run folder exists.
    """
    session = _Session(_after_twin(options) if options.twin else options)
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


def _after_twin(options: RecordOptions) -> RecordOptions:
    """Record the twin without shortcuts in a process of its own; return what is left to do."""
    from analyzer.cli.twin import record_twin

    run = options.run or free_folder(options.runs_dir, run_stem(options), has_twin=True)
    return record_twin(replace(options, run=run))


def record_zoo(options: RecordOptions, max_norm: float | None = None) -> int:
    """Train and record a built-in network, with gradients clipped to ``max_norm`` where given."""
    return _Session(options).train_zoo(max_norm)


class _Session:
    """The run folder, the recorder, and what is said about them on stderr."""

    def __init__(self, options: RecordOptions) -> None:
        self._options = options
        self.run = options.run or free_folder(options.runs_dir, run_stem(options))
        self._recorder: Any = None
        self._discovery: Any = None
        self._scaling: Any = None
        self._cannot_record = False
        self._last_words: list[str] = list(options.twin_words)
        self._pid = os.getpid()
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS

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
            if self._scaling is not None:
                self._scaling.stop()

    @property
    def trained(self) -> bool:
        """Whether a backward pass was seen, or could not be: then it is the script's own affair."""
        if self._cannot_record:
            return True
        return self._recorder is not None and self._recorder.training.has_trained

    def _begin(self) -> None:
        """Start to record; a failure here must not become one of the script's `import torch`."""
        try:
            self._start_recorder()
        except Exception as error:
            self._recorder = None
            self._cannot_record = True
            self._say(f"cannot record ({type(error).__name__}: {error}); the script goes on")

    def _start_recorder(self) -> None:
        from analyzer.recording.discovery import Discovery

        if self._options.seed is not None:
            from analyzer.networks.loop import seed_everything

            seed_everything(self._options.seed)
        self._recorder = self._new_recorder(None, self._manifest("script"))
        self._recorder.start()
        self._discovery = Discovery(self._recorder.training)
        self._start_scaling(None, ends_program=True)

    def _start_scaling(self, model: Any, *, ends_program: bool) -> None:
        """Scale the shortcuts from now on, where that was asked for."""
        if self._options.skip_scale is None:
            return
        from analyzer.recording.skip_scaling import SkipScaling

        self._scaling = SkipScaling(
            self._options.skip_scale,
            model,
            rescales=self._options.rescale,
            ends_program=ends_program,
            on_problem=self._last_words.append,
        )
        self._scaling.start()

    def end_script(self, ending: Ending) -> None:
        """Close the run and say what it holds, or that it failed before there was anything."""
        from analyzer.cli.mismatch import skip_mismatch
        from analyzer.recording.stopping import StopTraining

        status, error = "finished", None
        if isinstance(ending.exception, KeyboardInterrupt):
            status = "interrupted"
        elif ending.exit_code != 0:
            status = "failed"
            error = f"{type(ending.exception).__name__}: {ending.exception}"
            note = skip_mismatch(ending.exception)
            self._last_words.extend([] if note is None else [note])
        if self._cannot_record:
            return
        if self._recorder is None:
            self._write_failed_run(status, error)
            self._last_words.append(
                f"the script ended before it trained; kept as {status} in {self.run}"
            )
            return
        self._recorder.close(status, error)
        if isinstance(ending.exception, StopTraining):
            why = "as asked" if self._options.fail_on is None else "by --fail-on or --stop-after"
            self._last_words.append(f"stopped after {ending.exception.steps} steps, {why}")
        self._last_words.extend(self._result(status))
        if ending.exit_code == 0 and self._severe():
            ending.exit_code = 1

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
        from analyzer.networks.zoo import zoo_for

        name = self._options.target.removeprefix("zoo:")
        seed = self._seed()
        seed_everything(seed)
        data = dataset(self._options.data, seed=seed)
        model = zoo_for(name, data, seed=seed)
        return self._train(model, data, {}, "zoo", max_norm)

    def train_model_file(self, namespace: Mapping[str, Any]) -> int:
        """Train the model that a file defines with the built-in loop."""
        from analyzer.networks.data import dataset
        from analyzer.networks.loop import model_of, seed_everything

        self._discard()
        seed_everything(self._seed())
        model = model_of(namespace, self._options.target)
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
        with (
            self._scaled(model),
            self._recorder as recorder,
            training_progress(options.steps, options.quiet) as tick,
            self._explained(),
        ):

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
        found = self._last_words + self._result("finished")
        self._last_words = []
        is_severe = self._severe()
        for sentence in found + self._last_words:
            self._say(sentence)
        return 1 if is_severe else 0

    @contextlib.contextmanager
    def _scaled(self, model: Any) -> Iterator[None]:
        """Train with scaled shortcuts, where that was asked for."""
        self._start_scaling(model, ends_program=False)
        try:
            yield
        finally:
            if self._scaling is not None:
                self._scaling.stop()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Let the traceback of a skip whose operands do not match be followed by a note."""
        from analyzer.cli.mismatch import skip_mismatch

        try:
            yield
        except RuntimeError as error:
            note = skip_mismatch(error)
            if note is not None:
                # Python shows the traceback of an uncaught error before it calls such functions.
                atexit.register(self._say, note)
            raise

    def remove_empty_folder(self) -> None:
        """Leave nothing behind where nothing was recorded."""
        with contextlib.suppress(OSError):
            self.run.rmdir()

    # --- common ------------------------------------------------------------------------------

    def _stop_when_severe(self, step: int) -> None:
        """Look at what is on disk every few seconds; end the training where it is bad enough."""
        if time.monotonic() < self._next_look:
            return
        from analyzer.recording.stopping import StopTraining

        severe: list[Any] = []
        with contextlib.suppress(Exception):  # a look that fails must not end the recording
            severe = self._found_severe()
        if severe:
            raise StopTraining(step + 1)
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS

    def _severe(self) -> bool:
        """Whether the run has a severe finding that was to fail it; those are added to say."""
        severe = self._found_severe()
        self._last_words.extend(f"{finding.severity}: {finding.sentence}" for finding in severe)
        return bool(severe)

    def _found_severe(self) -> list[Any]:
        """The findings that were to fail the run, in what is on disk."""
        if self._options.fail_on is None or not self.run.exists():
            return []
        from analyzer.analysis.findings import findings
        from analyzer.storage.run import open_run

        return [f for f in findings(open_run(self.run)) if f.severity == self._options.fail_on]

    def _seed(self) -> int:
        return 0 if self._options.seed is None else self._options.seed

    def _new_recorder(self, model: Any, manifest: dict[str, Any]) -> Any:
        from analyzer.recording.recorder import Recorder

        schedule = {name: getattr(self._options, name) for name in _OPTIONS}
        watch = self._stop_when_severe if self._options.fail_on is not None else None
        return Recorder(
            model,
            self.run,
            manifest=manifest,
            warn=self._say,
            watch=watch,
            exist="use",
            **schedule,
        )

    def _manifest(self, kind: str) -> dict[str, Any]:
        from analyzer.recording.command_line import portable_argv

        options = self._options
        target = ["-m", options.target] if options.as_module else [options.target]
        scaled = {"skip_scale": options.skip_scale, "rescaled": options.rescale}
        twins = {"twin_of": options.twin_of, "twin": options.twin_name}
        return {
            "kind": kind,
            "argv": portable_argv([*target, *options.args], Path.cwd()),
            "seed": options.seed,
            **(scaled if options.skip_scale is not None else {}),
            **{key: value for key, value in twins.items() if value is not None},
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
