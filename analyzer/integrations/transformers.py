"""Records a training of Transformers: ``Trainer(callbacks=[RecorderCallback("runs/mine")])``."""

import math
import os
from collections.abc import Mapping
from typing import Any

from analyzer.integrations import CallbackRecording, library

__all__ = ["RecorderCallback"]

_Callback: Any = library("transformers", "transformers").TrainerCallback


class RecorderCallback(_Callback):  # type: ignore[misc]
    """Records ``trainer.train`` with a `Recorder`; what is logged becomes columns of ``steps``.

    Besides what the Trainer logs (``grad_norm``, ``eval_loss`` and the like) these are ``epoch``,
    counted from 0, and ``global_step``, the updates made when the step had ended. A metric with the
    name of a column of the recorder's own is in ``logged_<name>``: ``logged_loss`` is the mean of
    the Trainer since it logged last, ``loss`` that of the step.

    The Trainer does not say when it fails: such a recording ends with the program, or when the
    callback records the next training.

    Examples:
        >>> trainer = Trainer(  # doctest: +SKIP
        ...     model, args, train_dataset=data, callbacks=[RecorderCallback("runs/mine")]
        ... )

    Args:
        run: Folder of the run; default: the next free ``runs/<class of the model>-<k>``.
        exist: What to do when it exists: ``"raise"``, or ``"new"`` for the next free name.
        **options: Options of a `Recorder`, such as ``every=10``; with ``resume=RUN`` and
            ``trainer.train(resume_from_checkpoint=...)`` the steps of that run continue.

    Attributes:
        recording: Holds the recorder; ``recording.recorder.path`` is the folder of the run.

    Raises:
        ImportError: If ``transformers`` is not installed.
        RunExistsError: When training begins and the folder exists.
    """

    def __init__(
        self, run: str | os.PathLike[str] | None = None, *, exist: str | None = None, **options: Any
    ) -> None:
        super().__init__()
        self.recording = CallbackRecording(run, exist, options)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Start to record; a checkpoint was loaded by now."""
        self.recording.begin(given["model"], state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Add epoch and global step to the step."""
        epoch = None if state.epoch is None else max(0, math.ceil(state.epoch) - 1)
        self.recording.log({}, epoch=epoch, global_step=state.global_step)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Add what the Trainer logs to the step that has ended."""
        self.recording.log({name: v for name, v in (logs or {}).items() if name != "epoch"})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the recording."""
        self.recording.end()
