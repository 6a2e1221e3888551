"""The child process that runs a training script up to its first update, and measures there."""

import os
import sys
from collections.abc import Sequence
from typing import Any

from analyzer.errors import StopTraining
from analyzer.options import ProbePlan, RecordOptions
from analyzer.recording.probing import Probing, said_of
from analyzer.recording.provenance import restore_random_states
from analyzer.recording.training import Training
from analyzer.replaying import ProbeOrder, measure_all, sentences
from analyzer.replaying.programs import MARK, REFUSAL, check_batch
from analyzer.script import run_program, when_imported
from analyzer.storage.run import Run, open_run

_CHILD_FAILED = 3


class _Replay(Probing):
    """Measures as soon as the first batch is held, then ends the program."""

    def __init__(self, run: Run, order: ProbeOrder) -> None:
        plans = [ProbePlan(name) for name in order.names]
        super().__init__(plans, lambda *_: None, on_batch=lambda _: None, on_problem=_tell)
        self._run, self._order, self._parent = run, order, os.getppid()
        self._told = sentences(_tell)

    def begin_backward(self, step: int, roots: Sequence[Any]) -> None:
        """The first loss is there: measure on each checkpoint, and stop before the update."""
        super().begin_backward(step, roots)
        if self.held is None:
            return
        try:
            check_batch(self._run, self.held)
            measure_all(self._run, self.held, self._order, _tell, self._progress)
        except Exception as error:
            _refuse(said_of(error, self.held))
            raise SystemExit(_CHILD_FAILED) from error
        raise StopTraining(0)

    def _progress(self, what: str, done: int, total: int) -> None:
        """Tell how far it is; end with the command that started this process."""
        if os.getppid() != self._parent:
            raise SystemExit(_CHILD_FAILED)
        self._told(what, done, total)


def _tell(sentence: str) -> None:
    sys.stderr.write(f"{MARK}{sentence}\n")
    sys.stderr.flush()


def _refuse(sentence: str) -> None:
    """Leave a sentence for the parent process to end with."""
    sys.stderr.write(f"{REFUSAL}{' '.join(sentence.splitlines())}\n")
    sys.stderr.flush()


def main(words: Sequence[str]) -> int:
    """Run a script under the probes up to its first update; return the exit code."""
    run, order = open_run(words[0]), ProbeOrder.from_text(words[1])
    as_module = words[2] == "-m"
    target, args = (words[3], words[4:]) if as_module else (words[2], words[3:])
    state: list[Any] = []

    def begin() -> None:
        from analyzer.recording.discovery import Discovery
        from analyzer.recording.forward_calls import ForwardCalls

        restore_random_states(run.path)
        options = RecordOptions()
        training = Training(
            options,
            on_step=lambda _: None,
            on_tables=lambda: None,
            on_boundary=lambda *_: None,
            on_problem=lambda _: None,
            probing=_Replay(run, order),
            adopts_optimizers=True,
        )
        training.start()
        # As in a recording: whoever follows the calls before the first root sees all of that call.
        state.extend([training, Discovery(training), ForwardCalls(options, training.capture)])

    arrival = when_imported("torch", begin)
    ending = run_program(target, args, as_module=as_module)
    arrival.cancel()
    if isinstance(ending.exception, StopTraining):
        return 0
    if ending.exit_code == 0:
        _refuse("the program ended before its first backward pass")
        return _CHILD_FAILED
    return ending.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
