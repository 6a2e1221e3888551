"""Records a training by skorch: ``NeuralNet(..., callbacks=[RecorderCallback("runs/mine")])``."""

import os
from typing import Any

from analyzer.integrations import CallbackRecording, library

__all__ = ["RecorderCallback"]

_Callback: Any = library("skorch", "skorch.callbacks").Callback
_OWN = ("epoch", "batches")


class RecorderCallback(_Callback):  # type: ignore[misc]
    """Records ``net.fit`` with a `Recorder`: ``epoch`` and the scores of the history are columns.

    The epoch is counted from 0; the scores of an epoch, such as ``train_loss`` and ``valid_acc``,
    stand in its last step.

    Args:
        run: Folder of the run; default: the next free ``runs/<class of the module>-<k>``.
        exist: What to do when it exists: ``"raise"``, or ``"new"`` for the next free name.
        options: Options of a `Recorder`, such as ``{"every": 10}``.

    Attributes:
        recording: Holds the recorder; ``recording.recorder.path`` is the folder of the run.

    Raises:
        ImportError: If ``skorch`` is not installed.
        RunExistsError: When training begins and the folder exists.
    """

    def __init__(
        self,
        run: str | os.PathLike[str] | None = None,
        exist: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        # skorch copies a callback by its arguments.
        self.run, self.exist, self.options = run, exist, options

    def initialize(self) -> Any:
        """Forget earlier trainings."""
        self.recording = CallbackRecording(self.run, self.exist, self.options or {})
        return self

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Start to record."""
        self.recording.begin(net.module_)

    def on_batch_end(self, net: Any, batch: Any = None, training: bool = False, **_: Any) -> None:
        """Add the epoch to the step."""
        if training:
            self.recording.log({}, epoch=len(net.history) - 1)

    def on_epoch_end(self, net: Any, *_: Any, **__: Any) -> None:
        """Add the scores of the epoch to its last step."""
        scores = {n: v for n, v in net.history[-1].items() if n not in _OWN and "_best" not in n}
        self.recording.log(scores)

    def on_train_end(self, net: Any, *_: Any, **__: Any) -> None:
        """End the recording."""
        self.recording.end()
