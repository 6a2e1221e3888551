"""A zoo network or the model of a file, trained by the built-in loop under the recorder."""

import atexit
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from analyzer.cli.mismatch import shortcut_mismatch
from analyzer.cli.session import Session
from analyzer.errors import AnalyzerError
from analyzer.options import MODEL_FILE, ZOO, RecordOptions

__all__ = ["train_model_file", "train_zoo"]

_PLAIN_LINES = 4


def train_zoo(
    options: RecordOptions, max_norm: float | None = None, run: Path | None = None
) -> int:
    """Train and record a built-in network, with gradients clipped to ``max_norm`` where given.

    ``run`` is the folder of the run where it was made already.

    Raises:
        AnalyzerError: If there is no such network.
    """
    from analyzer.networks.data import dataset
    from analyzer.networks.loop import seed_everything
    from analyzer.networks.zoo import zoo_for

    session = _LoopSession(options, run)
    try:
        seed_everything(session.seed)
        data = dataset(options.data, seed=session.seed)
        model = zoo_for(options.target.removeprefix(ZOO), data, seed=session.seed)
        return session.train(model, data, {}, "zoo", max_norm)
    except AnalyzerError:
        session.remove_empty_folder()
        raise


def train_model_file(options: RecordOptions, run: Path, namespace: Mapping[str, Any]) -> int:
    """Train the model that a file defines.

    Args:
        options: Those of the recording.
        run: Folder of the run.
        namespace: The globals of the file.

    Raises:
        ScriptError: If the file defines no model.
    """
    from analyzer.networks.data import dataset
    from analyzer.networks.loop import model_of, seed_everything, takes_shortcuts

    if (options.point or {}).get("shortcuts") == "off" and takes_shortcuts(namespace):
        options = replace(options, skip_scale=None)  # it builds the plain network itself
    session = _LoopSession(options, run)
    seed_everything(session.seed)
    model = model_of(namespace, options.target, options.point)
    data = None if "batches" in namespace else dataset(options.data, seed=session.seed)
    return session.train(model, data, namespace, "model file")


class _LoopSession(Session):
    """A recording of the built-in loop."""

    def __init__(self, options: RecordOptions, run: Path | None = None) -> None:
        super().__init__(options, run)
        self.seed = 0 if options.seed is None else options.seed

    def train(
        self,
        model: Any,
        data: Any,
        namespace: Mapping[str, Any],
        kind: str,
        max_norm: float | None = None,
    ) -> int:
        """Train a model; return the exit code.

        Args:
            model: The model.
            data: What to train it on; None for the batches of the file.
            namespace: The globals of the file; they may define loss, batches and optimizer.
            kind: What the manifest calls it.
            max_norm: Where to clip gradients; None not to.
        """
        from torch.nn.functional import cross_entropy

        from analyzer.networks import loop
        from analyzer.networks.data import batches

        options = self.options
        device = loop.choose_device(options.device)
        model.to(device)
        if "build_optimizer" in namespace:
            optimizer = namespace["build_optimizer"](model)
        else:
            optimizer = loop.optimizer(options.optimizer, model, options.lr)
        if data is None:
            stream = namespace["batches"]()
        else:
            stream = batches(data, options.batch_size, seed=self.seed, device=device)
        loss = namespace.get("loss", cross_entropy)
        accuracies: list[Any] = []
        if options.point is not None:
            loss = _with_accuracy(loss, accuracies)
        manifest = self.manifest(kind) | {
            "seed": self.seed,
            "data": None if data is None else options.data,
            "batch_size": None if data is None else options.batch_size,
            "optimizer": type(optimizer).__name__,
            "loop": options.stored(MODEL_FILE),
        }
        self.recorder = self.new_recorder(model, manifest)
        self.signals.watch()
        with (
            self._scaled(model),
            self.recorder as recorder,
            _progress(options.steps, options.quiet) as tick,
            self._explained(),
        ):

            def on_step(step: int, loss: Any) -> None:
                epoch = getattr(stream, "epoch", None)
                if epoch is not None:
                    recorder.log(epoch=epoch)
                if accuracies:
                    recorder.log(accuracy=accuracies.pop())
                tick(step)

            loop.train(
                model,
                stream,
                steps=options.steps,
                loss=loss,
                optimizer=optimizer,
                device=device,
                max_norm=max_norm,
                on_step=on_step,
            )
        self.signals.stop()
        self.last_words += self.result("finished")
        is_severe = self.is_severe()
        for sentence in self.last_words:
            self.say(sentence)
        return 1 if is_severe else 0

    @contextlib.contextmanager
    def _scaled(self, model: Any) -> Iterator[None]:
        """Train with scaled shortcuts, where that was asked for."""
        self.start_scaling(model, ends_program=False)
        try:
            yield
        except AnalyzerError:
            if self._scaling.names_no_join and self.options.point is None:
                self.remove_run()
            raise
        finally:
            self.stop_scaling()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Let the traceback of a shortcut whose operands do not match be followed by a note."""
        try:
            yield
        except RuntimeError as error:
            note = shortcut_mismatch(error)
            if note is not None:
                # Python shows the traceback of an uncaught error before it calls such functions.
                atexit.register(self.say, note)
            raise


def _with_accuracy(loss: Callable[..., Any], found: list[Any]) -> Callable[..., Any]:
    """The loss, which also leaves the share of the batch whose class is right; on the device."""

    def noted(output: Any, target: Any) -> Any:
        found.clear()
        if getattr(output, "ndim", 0) == 2 and getattr(target, "ndim", 0) == 1:
            found.append((output.detach().argmax(1) == target).float().mean())
        return loss(output, target)

    return noted


@contextlib.contextmanager
def _progress(steps: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Give a function to call with each finished step, which never reads from a device.

    It moves a bar on a terminal and writes plain lines elsewhere, both on stderr.
    """
    if quiet:
        yield lambda step: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("training", total=steps)
            yield lambda step: progress.update(task, completed=step + 1)
    else:
        yield _plain_lines(steps)


def _plain_lines(steps: int) -> Callable[[int], None]:
    """A line at each quarter: enough for a log file."""
    started = time.perf_counter()
    marks = {max(1, steps * k // _PLAIN_LINES) for k in range(1, _PLAIN_LINES + 1)}

    def advance(step: int) -> None:
        if step + 1 in marks:
            seconds = time.perf_counter() - started
            sys.stderr.write(f"analyzer: training: step {step + 1} of {steps}, {seconds:.1f} s\n")
            sys.stderr.flush()

    return advance
