"""Callbacks that record a training inside of another library's loop: they start and end a recorder.

Each module has a ``RecorderCallback`` for its library, which is an optional extra.
"""

import atexit
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from analyzer.recording.recorder import Recorder
from analyzer.storage.catalog import resolve_run
from analyzer.storage.run import open_run
from analyzer.storage.schema import TABLES

__all__ = ["CallbackRecording", "library"]


def library(extra: str, *names: str) -> Any:
    """Import the first of these modules that is installed.

    Raises:
        ImportError: If none is, with the extra that installs it.
    """
    for name in names:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != name.partition(".")[0]:
                raise  # it is installed, and lacks something itself
    raise ImportError(
        f"analyzer.integrations.{extra} needs {names[0].partition('.')[0]}, which is not "
        f"installed; install it with: pip install 'gradient-flow-analyzer[{extra}]'"
    )


class CallbackRecording:
    """The recorder of a callback, from the beginning of a training to its end.

    Args:
        run: Folder of the run, as that of a `Recorder`.
        exist: What to do when it exists, likewise.
        options: Options of a `Recorder`.

    Attributes:
        recorder: The recorder of the training; None before the first one.
    """

    def __init__(
        self, run: str | os.PathLike[str] | None, exist: str | None, options: Mapping[str, Any]
    ) -> None:
        self.recorder: Recorder | None = None
        self._run, self._exist, self._options = run, exist, dict(options)
        self._is_open = False

    def begin(self, model: nn.Module, global_step: int | None = None) -> None:
        """Start to record a model.

        Args:
            model: It is about to be trained.
            global_step: Updates that were made before, as the library counts them.
        """
        self.end("failed", "it did not come to its end before the next training began")
        options = dict(self._options)
        if options.get("resume") is not None and global_step is not None:
            options.setdefault("first_step", _continued(options["resume"], global_step))
        self.recorder = Recorder(model, self._run, exist=self._exist, **options)
        self.recorder.start()
        self._is_open = True
        atexit.register(self._end_at_exit)

    def log(
        self,
        metrics: Mapping[str, Any],
        *,
        epoch: int | None = None,
        global_step: int | None = None,
    ) -> None:
        """Add columns to the step that has ended.

        A metric with the name of a column of the recorder's own is ``logged_<name>``; what is no
        number, text or one-element tensor is left out.
        """
        if not self._is_open or self.recorder is None:
            return
        values: dict[str, Any] = {}
        for name, value in metrics.items():
            if _is_loggable(value):
                values[f"logged_{name}" if name in TABLES["steps"].names else name] = value
        places = {"epoch": epoch, "global_step": global_step}
        values |= {name: value for name, value in places.items() if value is not None}
        if values:
            self.recorder.log(**values)

    def end(self, status: str = "finished", error: str | None = None) -> None:
        """End the recording, if one is open."""
        if self._is_open and self.recorder is not None:
            self._is_open = False
            atexit.unregister(self._end_at_exit)
            self.recorder.close(status, error)

    def end_with(self, error: BaseException) -> None:
        """End the recording of a training that an error or an interrupt has ended."""
        if isinstance(error, KeyboardInterrupt):
            self.end("interrupted")
        else:
            self.end("failed", f"{type(error).__name__}: {error}")

    def _end_at_exit(self) -> None:
        """The program ends without a word of the library: by an error, as a rule."""
        self.end_with(getattr(sys, "last_value", None) or RuntimeError("the program ended"))


def _is_loggable(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, float | int | bool | str) or getattr(value, "size", 0) == 1


def _continued(run: str, global_step: int) -> int | None:
    """The number of the step after so many updates; None where the run does not tell."""
    found = open_run(resolve_run(run))
    if "global_step" not in found.read("steps", steps=[]).column_names:
        return None
    rows = found.read("steps", "global_step").drop_null()
    if not rows.num_rows:
        return None
    step, count = (rows.column(name)[-1].as_py() for name in ("step", "global_step"))
    return max(0, int(step) + 1 + global_step - int(count))
