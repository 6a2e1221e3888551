"""Records a training by Lightning: ``Trainer(callbacks=[RecorderCallback("runs/mine")])``."""

import os
from typing import Any

from analyzer.integrations import CallbackRecording, library

__all__ = ["RecorderCallback"]

_Callback: Any = library("lightning", "lightning.pytorch", "pytorch_lightning").Callback


class RecorderCallback(_Callback):  # type: ignore[misc]
    """Records ``trainer.fit`` with a `Recorder`; what is logged becomes columns of ``steps``.

    Besides the metrics of ``self.log`` these are ``epoch`` and ``global_step``, the updates made
    when the step had ended. A metric with the name of a column of the recorder's own, such as
    ``loss``, is in ``logged_loss``. Metrics of a validation or of an epoch stand in the last step
    before it.

    Examples:
        >>> trainer = Trainer(callbacks=[RecorderCallback("runs/mine", every=10)])  # doctest: +SKIP
        >>> trainer.fit(module, data)  # doctest: +SKIP

    Args:
        run: Folder of the run; default: the next free ``runs/<class of the module>-<k>``.
        exist: What to do when it exists: ``"raise"``, or ``"new"`` for the next free name.
        **options: Options of a `Recorder`, such as ``every=10``; with ``resume=RUN`` and
            ``trainer.fit(ckpt_path=...)`` the steps of that run continue.

    Attributes:
        recording: Holds the recorder; ``recording.recorder.path`` is the folder of the run.

    Raises:
        ImportError: If neither ``lightning`` nor ``pytorch_lightning`` is installed.
        RunExistsError: When training begins and the folder exists.
    """

    def __init__(
        self, run: str | os.PathLike[str] | None = None, *, exist: str | None = None, **options: Any
    ) -> None:
        super().__init__()
        self.recording = CallbackRecording(run, exist, options)
        self._logged: dict[str, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start to record; a checkpoint was loaded by now."""
        self.recording.begin(pl_module, trainer.global_step)

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """Add what the module has logged at the end of an epoch to the last step of it."""
        self._log(trainer)

    def on_before_optimizer_step(self, trainer: Any, *_: Any) -> None:
        """Add epoch and global step to each step of a batch: it may make several updates."""
        places = {"epoch": trainer.current_epoch, "global_step": trainer.global_step + 1}
        self.recording.log({}, **places)

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Add epoch, global step and what was logged to the step."""
        self._log(trainer, epoch=trainer.current_epoch, global_step=trainer.global_step)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Add what a validation has logged to the step before it."""
        self._log(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Add what is known of the whole epoch to its last step."""
        self._log(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End the recording."""
        self._log(trainer)
        self.recording.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the recording of a training that failed or was interrupted."""
        self.recording.end_with(exception)

    def _log(self, trainer: Any, **places: int) -> None:
        """Add what was logged since last time: the trainer keeps what is old as it is."""
        found, before = dict(trainer.callback_metrics), self._logged
        new = {name: value for name, value in found.items() if before.get(name) is not value}
        self._logged = found
        self.recording.log(new, **places)
