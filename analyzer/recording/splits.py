"""The joins of a training and the split gradients at them, from its own backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node

from analyzer.joins.backward import SplitHooks
from analyzer.joins.graph import Walk
from analyzer.joins.plan import JoinPlan, JoinSite, joins_in_graph
from analyzer.joins.products import JoinGradients
from analyzer.joins.search import Join
from analyzer.options import RecordOptions
from analyzer.recording.live_log import JoinTable, LiveLog, is_compiled, token, without_collections
from analyzer.recording.names import unwrapped
from analyzer.recording.split_rows import SplitRows

__all__ = ["Splits"]

# A model that never meets a backward pass is waited for no longer than this many steps.
_MOST_TRIES = 20
# Graphs of a training that alternates between a few; one that changes each time has no use of more.
_MOST_PLANS = 8
# Steps after a split in which joins that had no part in it are split, too.
_MOST_TURNS = 3


class Splits:
    """Finds the joins in the graphs of a training, and hooks them on the steps that are split.

    Args:
        schedule: Which steps are split.
        on_problem: Called with a sentence about joins that cannot be seen.
    """

    def __init__(self, schedule: RecordOptions, on_problem: Callable[[str], None]) -> None:
        self.table = JoinTable(schedule.max_calls)
        self.tables_changed = False
        self._schedule = schedule
        self._on_problem = on_problem
        self._roots: list[tuple[int, Callable[[], nn.Module | None]]] = []
        self._waiting: dict[str, int] = {}
        self._plans: list[JoinPlan] = []
        self._log: LiveLog | None = None
        self._hooks: SplitHooks | None = None
        self._kept: list[JoinSite] = []
        # The forward passes that no graph was found for yet; the joins that wait for their turn.
        self._left: LiveLog | None = None
        self._missing: set[int] = set()
        self._tries = 0
        self._asked = -1
        self._varies = False
        self._is_off = False

    def add_root(self, number: int, ref: Callable[[], nn.Module | None]) -> None:
        """Look for joins in this model, too."""
        root = ref()
        if root is None:
            return
        if is_compiled(root):
            name = type(unwrapped(root)).__name__
            self._on_problem(f"joins of {name}: compiled code hides what it computes")
            return
        if all(known != number for known, _ in self._roots):
            self._roots.append((number, ref))
        self._waiting[token(number)] = _MOST_TRIES
        if self._log is not None:
            self._log.add_root(number, root)

    def forget_roots(self) -> None:
        """Look for joins in none of the models any more, before a backward pass was seen."""
        self._roots.clear()
        self._waiting.clear()
        if self._log is not None:
            self._log.close()
            self._log = LiveLog(self._schedule.max_calls)

    @property
    def wants_all(self) -> bool:
        """Whether a forward pass is watched for new joins."""
        return self._log is not None

    def enter(self, module: nn.Module, args: Any) -> None:
        """A module is about to be called."""
        if self._log is not None and module in self._log.paths:
            self._log.enter(module, args)

    def leave(self, module: nn.Module, output: Any) -> None:
        """A call of a module has ended."""
        if self._log is not None and module in self._log.paths:
            self._log.leave(module, output)

    def prepare(self, step: int) -> None:
        """Before the forward pass of a step: watch it if its graph may be a new one."""
        self._kept = []
        is_new = self._schedule.records(step) and (not self._plans or bool(self._waiting))
        if is_new or (self._varies and self._is_due(step)):
            self._open_log()

    def _is_due(self, step: int) -> bool:
        """Whether the graphs of a step are split: by schedule, or since others had that turn.

        Trainings that alternate between two networks would split one of them alone.
        """
        is_due = self._schedule.splits(step)
        if step != self._asked:
            self._asked = step
            if is_due:
                self._missing, self._tries = set(range(len(self.table))), _MOST_TURNS
            else:
                self._tries -= 1
        waits = bool(self._missing) and self._tries >= 0 and self._schedule.records(step)
        return not self._is_off and (is_due or waits)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Forward passes in here are not the training's."""
        log = self._log
        if log is not None:
            log.is_paused = True
        try:
            yield
        finally:
            if log is not None:
                log.is_paused = False

    def _open_log(self) -> None:
        if self._log is not None or self._is_off:
            return
        self._log = LiveLog(self._schedule.max_calls)
        for number, ref in self._roots:
            root = ref()
            if root is not None:
                self._log.add_root(number, root)

    def begin_backward(
        self, step: int, rows: SplitRows, roots: Sequence[Any], *, keeps_graph: bool, scale: Any
    ) -> None:
        """Find the joins of the graph if it is a new one; hook them if the step is split.

        Args:
            step: The number of the step.
            rows: Get the gradients.
            roots: Where the pass starts.
            keeps_graph: Whether another pass over the same graph may follow.
            scale: By how much the loss was multiplied; None where it was not.
        """
        log, self._log = self._log, None
        if log is not None:
            log.close()
        is_due = self._is_due(step)
        if log is None and not is_due:
            return
        nodes = [root.grad_fn if isinstance(root, Tensor) else root.node for root in roots]
        with without_collections():
            walk = Walk([node for node in nodes if node is not None])
            kept = [site for site in self._kept if site.node in walk.place]
            sites = kept or self._located(walk)
            if log is not None:
                left, num_joins = log.restrict(walk.nodes), len(self.table)
                self._note_roots(log)
                if sites is None:
                    sites = self._discovered(walk, log)
                is_due |= len(self.table) > num_joins and not self._is_off
                if self._waiting and left:  # one whose backward pass comes later, as a generator's
                    log.calls, self._left = left, log
        if sites is None:
            rows.is_partial |= is_due
            self._varies |= is_due
        elif is_due and sites:
            self._kept = sites if keeps_graph else []
            self._attach(sites, rows, keeps_graph=keeps_graph, scale=scale)

    def end_backward(self, step: int, rows: SplitRows, *, failed: bool) -> None:
        """Remove the hooks; the next micro-batch of a changing network has another graph."""
        self._log, self._left = self._left or self._log, None
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            rows.is_partial |= failed
            hooks.finish()
        if self._varies and self._is_due(step):
            self._open_log()

    def close(self) -> None:
        """Leave nothing behind."""
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._hooks is not None:
            self._hooks.discard()
            self._hooks = None

    def _located(self, walk: Walk) -> list[JoinSite] | None:
        for place, plan in enumerate(self._plans):
            sites = plan.sites(walk)
            if sites is not None:
                self._plans.insert(0, self._plans.pop(place))
                return sites
        return None

    def _discovered(self, walk: Walk, log: LiveLog) -> list[JoinSite] | None:
        try:
            plan = joins_in_graph(walk, log)
        except Exception as error:  # a graph like no other: recording continues without joins
            self._is_off = True
            self._on_problem(f"joins: the graph cannot be read ({type(error).__name__}: {error})")
            return None
        self._varies |= bool(self._plans)
        self._plans = [plan, *self._plans][:_MOST_PLANS]
        for join in plan.joins:
            self.tables_changed |= self.table.add(join)
        for module, reason in plan.unseen:
            self._on_problem(f"joins of {self._spelled(module)}: {reason}")
        return plan.sites(walk)

    def _spelled(self, path: str) -> str:
        """The path of a module in its model; the class name for the model itself."""
        root, _, inner = path.partition(".")
        models = {token(number): ref() for number, ref in self._roots}
        model = models.get(root)
        return inner or (path if model is None else type(unwrapped(model)).__name__)

    def _note_roots(self, log: LiveLog) -> None:
        """Wait no more for the models that had a part in this graph."""
        seen = {call.path.partition(".")[0] for call in log.calls}
        self._waiting = {
            name: tries - 1
            for name, tries in self._waiting.items()
            if name not in seen and tries > 1
        }

    def _attach(
        self, sites: list[JoinSite], rows: SplitRows, *, keeps_graph: bool, scale: Any
    ) -> None:
        places = {site.join.index: _sequence(site.node) for site in sites}
        self._missing.difference_update(self.table.number(site.join) for site in sites)

        def note(join: Join, gradients: JoinGradients) -> None:
            number = self.table.number(join)
            if number is not None:
                place = number, places[join.index]
                rows.add(place, gradients, keeps=keeps_graph, scale=scale)

        self._hooks = SplitHooks(sites, partial(_guarded, note, self._on_problem, rows))


def _guarded(
    note: Callable[[Join, JoinGradients], None],
    on_problem: Callable[[str], None],
    rows: SplitRows,
    join: Join,
    gradients: JoinGradients,
) -> None:
    """Inside the backward pass of the training: an error must not become one of its own."""
    try:
        note(join, gradients)
    except Exception as error:
        rows.is_partial = True
        on_problem(f"splits of {join.name}: {type(error).__name__}: {error}")


def _sequence(node: Node | None) -> int:
    return -1 if node is None else int(node._sequence_nr())
