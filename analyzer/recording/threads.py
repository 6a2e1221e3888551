"""Which thread's training is recorded: a process may train in several at once."""

import threading
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any

from torch import Tensor, is_grad_enabled
from torch._C import _current_graph_task_id
from torch.autograd.graph import Node

from analyzer.recording.hook_classes import Gate

__all__ = ["TrainingThread", "reaches"]


class TrainingThread:
    """The thread that is recorded: the first that calls a model and runs a backward pass.

    It is the one until it has ended; then another may take its place. What the others do is left
    alone, so that nothing of it is mixed in. Until a backward pass has decided, a thread has the
    recording for as long as its forward pass runs.

    Args:
        gate: Learns which thread it is.
        is_ours: Whether a parameter is one of the recorded models; None where all are.
        on_problem: Called with a sentence about a thread whose training is not recorded.

    Attributes:
        rivals: Threads whose forward passes were seen before another one had the recording.
    """

    def __init__(
        self,
        gate: Gate,
        *,
        is_ours: Callable[[Tensor], bool] | None,
        on_problem: Callable[[str], None],
    ) -> None:
        self.rivals: set[int] = set()
        self._gate = gate
        self._is_ours = is_ours
        self._on_problem = on_problem
        self._is_decided = False
        self._seen: set[int] = set()
        self._missed: set[int] = set()

    def is_other(self) -> bool:
        """Whether what this thread does is not recorded."""
        gate = self._gate
        if gate.thread in (0, get_ident()):
            return False
        if gate.in_backward and _current_graph_task_id() != -1:
            return False  # a thread of the engine, in which a checkpoint computes again
        if any(thread.ident == gate.thread for thread in threading.enumerate()):
            return True
        self._is_decided, gate.thread = False, 0
        self._seen.clear()
        return False

    def enter(self) -> None:
        """A forward pass that is recorded begins in this thread."""
        if not self._is_decided:
            self._gate.thread = get_ident()
            if is_grad_enabled():
                self._seen.add(get_ident())

    def leave(self) -> None:
        """That forward pass has ended."""
        if not self._is_decided:
            self._gate.thread = 0

    def miss(self) -> None:
        """A model is called in a thread that is not recorded."""
        if is_grad_enabled():
            self._missed.add(get_ident())

    def follows(self, roots: Sequence[Any], *, is_backward: bool) -> bool:
        """Whether a backward pass, or an ``autograd.grad``, that this thread begins is recorded."""
        return self._takes_backward(roots) if is_backward else not self.is_other()

    def _takes_backward(self, roots: Sequence[Any]) -> bool:
        """The first backward pass decides for its thread."""
        is_other, me = self.is_other(), get_ident()
        if self._is_decided and not is_other:
            return True
        if me in self._seen and not self._is_decided:
            self._is_decided, self._gate.thread = True, me
            self.rivals = self._seen - {me}
            return True
        if self._is_decided or me in self._missed:
            if me in self._missed or self._is_ours is None:
                self._on_problem(
                    f"the training in thread '{threading.current_thread().name}': a recording "
                    "follows one thread, and another one trained first"
                )
            return False
        # Models may be called in threads for one backward pass here.
        return self._is_ours is None or not self._seen or reaches(roots, self._is_ours)


def reaches(roots: Sequence[Any], is_ours: Callable[[Tensor], bool]) -> bool:
    """Return whether a backward pass from these tensors comes to one of our parameters."""
    starts = [root.grad_fn if isinstance(root, Tensor) else root.node for root in roots]
    stack: list[Node] = [node for node in starts if node is not None]
    known = set(stack)
    while stack:
        children = [child for child, _ in stack.pop().next_functions if child is not None]
        for child in children:  # leaves first, since one is enough
            variable = getattr(child, "variable", None)
            if variable is not None and is_ours(variable):
                return True
        new = set(children) - known
        known |= new
        stack.extend(new)
    return False
