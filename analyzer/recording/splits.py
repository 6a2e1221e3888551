"""The joins of a training and the split gradients at them, from its own backward passes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from analyzer.joins.addends import Addends
from analyzer.joins.backward import SplitHooks
from analyzer.joins.graph import Walk
from analyzer.joins.modes import is_transformed, runs_compiled, without_collections
from analyzer.joins.plan import JoinPlan, JoinSite, adds_unseen, joins_in_graph, what_is_hidden
from analyzer.joins.products import JoinGradients
from analyzer.joins.search import Join
from analyzer.options import RecordOptions
from analyzer.recording.hook_classes import Gate
from analyzer.recording.invocation import Invocation, Patterns
from analyzer.recording.live_log import JoinTable, LiveLog, is_compiled, token
from analyzer.recording.names import unwrapped
from analyzer.recording.split_rows import SplitRows

__all__ = ["Splits"]

# A model that never meets a backward pass is waited for no longer than this many steps.
_MOST_TRIES = 20
# Graphs of a training that alternates between a few; one that changes each time has no use of more.
_MOST_PLANS = 8
# Steps after a split in which joins that had no part in it are split, too.
_MOST_TURNS = 3

_Located: TypeAlias = tuple[JoinSite, int]


class Splits:
    """Finds the joins in the graphs of a training, and hooks them on the steps that are split.

    Args:
        schedule: Which steps are split.
        on_problem: Called with a sentence about joins that cannot be seen.

    Attributes:
        gate: Decides what is recorded; it is told of the mode that sees what joins add.
    """

    def __init__(self, schedule: RecordOptions, on_problem: Callable[[str], None]) -> None:
        self.table = JoinTable(schedule.max_calls)
        self.tables_changed = False
        # Joins of a resumed run are new to this attempt alone.
        self.waits_for_turn = False
        self.gate = Gate()
        self._schedule = schedule
        self._on_problem = on_problem
        self._roots: list[tuple[int, Callable[[], nn.Module | None]]] = []
        self._waiting: dict[str, int] = {}
        self._plans: list[tuple[JoinPlan, list[int]]] = []
        self._patterns = Patterns()
        self._log: LiveLog | None = None
        self._hidden: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._hooks: SplitHooks | None = None
        self._kept: list[_Located] = []
        self._addends = Addends()
        # The root whose call is measured now.
        self._inside: nn.Module | None = None
        # The forward passes that no graph was found for yet; the joins that wait for their turn.
        self._left: LiveLog | None = None
        self._missing: set[int] = set()
        self._tries, self._asked = 0, -1
        self._varies = self._needs_trace = self._has_untraced = self._is_off = False
        self._needs_count = self._has_parts = self._measures = False

    def add_root(self, number: int, ref: Callable[[], nn.Module | None]) -> None:
        """Look for joins in this model, too."""
        root = ref()
        if root is None:
            return
        if is_compiled(root) or root in self._hidden:
            self._say_hidden(root)
            return
        if all(known != number for known, _ in self._roots):
            self._roots.append((number, ref))
        self._waiting[token(number)] = _MOST_TRIES
        if self._log is not None:
            self._log.add_root(number, root)

    def hide(self, part: nn.Module) -> None:
        """A part of a model runs as compiled code: look for joins in that model no more."""
        if part in self._hidden:
            return
        self._hidden.add(part)
        for number, ref in [*self._roots]:
            root = ref()
            if root is not None and any(module is part for module in root.modules()):
                self._hidden.add(root)
                self._say_hidden(root)
                self._roots.remove((number, ref))
                self._waiting.pop(token(number), None)
                if self._log is not None:
                    self._log.remove_root(number)

    def _say_hidden(self, root: nn.Module) -> None:
        name = type(unwrapped(root)).__name__
        self._on_problem(f"joins and edges of {name}: compiled code hides what it computes")

    def forget_roots(self) -> None:
        """Look for joins in none of the models any more, before a backward pass was seen."""
        self._roots.clear()
        self._waiting.clear()
        if self._log is not None:
            self._log.close()
            self._log = None
            self._open_log()

    def wait_for_turn(self) -> None:
        """Split joins that are new to this attempt of a resumed run by schedule alone."""
        self.waits_for_turn, self._asked = True, -1
        self._missing.clear()

    @property
    def wants_all(self) -> bool:
        """Whether a forward pass is watched for new joins, or begins in a part of a model."""
        return self._log is not None or (self._measures and self._has_parts)

    def enter(self, module: nn.Module, args: Any) -> None:
        """A module is about to be called."""
        if self._log is None:
            self._begin_measuring(module)
        elif module in self._log.paths:
            self._log.enter(module, args)
            self._addends.is_paused = self._log.is_late

    def leave(self, module: nn.Module, output: Any) -> None:
        """A call of a module has ended."""
        if self._log is not None and module in self._log.paths:
            self._log.leave(module, output)
            self._addends.is_paused = self._log.is_late
        if module is self._inside:
            self._end_measuring()

    def _begin_measuring(self, module: nn.Module) -> None:
        """Measure what the call of a root, or of a part that is called alone, adds."""
        if not self._measures or self._inside is not None or not torch.is_grad_enabled():
            return
        is_root = self._has_parts or any(ref() is module for _, ref in self._roots)
        if is_root and not (is_transformed() or runs_compiled()):
            self._inside = module
            self._addends.begin()
            self.gate.own_modes = 1

    def _end_measuring(self) -> None:
        if self._inside is not None:
            self._inside = None
            self._addends.end()
            self.gate.own_modes = 0

    def prepare(self, step: int) -> None:
        """Before the forward pass of a step: watch it if its graph may be a new one."""
        self._kept = []
        is_new = self._schedule.records(step) and (not self._plans or bool(self._waiting))
        if is_new or self._wants_trace(step):
            self._open_log()
        self._measures = (is_new or self._is_due(step)) and not self._is_off
        if self._measures:
            self._addends.counts = self._log is not None or self._needs_count
            self._addends.forget()

    def _wants_trace(self, step: int) -> bool:
        """Whether forks that autograd does not see may be other ones than before."""
        may_differ = self._varies and self._schedule.records(step)
        return may_differ and (self._has_untraced or self._is_due(step))

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
        log, measures = self._log, self._measures
        self._measures = False
        if log is not None:
            log.is_paused = True
        try:
            yield
        finally:
            self._measures = measures
            if log is not None:
                log.is_paused = False

    def _open_log(self) -> None:
        if self._log is None and not self._is_off:
            self._addends.follows = self._addends.counts = True
            self._log = self._new_log(self._addends)

    def _new_log(self, trace: Addends | None = None) -> LiveLog:
        log = LiveLog(self._schedule.max_calls, trace)
        for number, ref in self._roots:
            root = ref()
            if root is not None:
                log.add_root(number, root)
        return log

    def begin_backward(
        self,
        step: int,
        rows: SplitRows,
        roots: Sequence[Any],
        forward: Iterable[Invocation],
        *,
        keeps_graph: bool,
        scale: Any,
    ) -> None:
        """Find the joins of the graph if something in it is new; hook them if the step is split.

        Args:
            step: The number of the step.
            rows: Get the gradients.
            roots: Where the pass starts.
            forward: The forward passes whose graphs may be part of it.
            keeps_graph: Whether another pass over the same graph may follow.
            scale: By how much the loss was multiplied; None where it was not.
        """
        log, self._log = self._log, None
        if log is not None:
            log.close()
        self._end_measuring()  # an interrupted forward pass never came to its end
        is_due, passes = self._is_due(step), sorted(forward, key=attrgetter("order"))
        new = [made for made in passes if self._patterns.has_new(made.spans)]
        if self._is_off or not (log or is_due or new):
            return
        nodes = [root.grad_fn if isinstance(root, Tensor) else root.node for root in roots]
        with without_collections():
            walk = Walk([node for node in nodes if node is not None])
            numbers = sorted(node._sequence_nr() for node in walk.nodes)
            used = [made for made in passes if made.is_in(numbers)]
            kept = [located for located in self._kept if located[0].node in walk.place]
            found, num_joins = kept or self._located(walk), len(self.table)
            left = log.restrict(numbers) if log is not None else []
            if found is None and (log or is_due or any(made in used for made in new)):
                found = self._discovered(walk, self._log_of(used, numbers, log))
            self._has_untraced = self._needs_trace and log is None and bool(new)
            for made in () if self._has_untraced else used:
                self._patterns.add(made.spans)
            if log is not None:
                self._has_parts |= any(c.parent < 0 and c.path not in log.roots for c in log.calls)
                self._note_roots(log)
                if self._waiting and left:  # one whose backward pass comes later, as a generator's
                    log.calls, self._left = left, log
        rows.is_partial |= is_due and self._is_off
        is_new, start = len(self.table) > num_joins, used[0].base if used else -1
        if found and is_new and self.waits_for_turn and not is_due:
            self._addends.outputs([site for site, _ in found], start)  # what later passes measure
        elif found and (is_due or is_new):
            self._kept = found if keeps_graph else []
            self._attach(found, rows, start, keeps_graph=keeps_graph, scale=scale)

    def end_backward(self, step: int, rows: SplitRows, *, failed: bool) -> None:
        """Remove the hooks; the next micro-batch of a changing network has another graph."""
        self._log, self._left = self._left or self._log, None
        if self._log is None:
            self._addends.let_go()
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            rows.is_partial |= failed
            hooks.finish()
        if self._wants_trace(step):
            self._open_log()

    def close(self) -> None:
        """Leave nothing behind."""
        self._end_measuring()
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._hooks is not None:
            self._hooks.discard()
            self._hooks = None

    def _log_of(
        self, used: Sequence[Invocation], numbers: Sequence[int], log: LiveLog | None
    ) -> LiveLog:
        """The calls that made a graph: as they were watched, or as far as invocations tell."""
        starts = {call.start for call in log.calls} if log is not None else set()
        if log is not None and all(made.base in starts for made in used):
            return log
        log = self._new_log()
        for made in used:
            log.replay(made.base, made.spans)
        log.restrict(numbers)
        return log

    def _located(self, walk: Walk) -> list[_Located] | None:
        for place, (plan, numbers) in enumerate(self._plans):
            sites = plan.sites(walk)
            if sites is not None:
                self._plans.insert(0, self._plans.pop(place))
                return list(zip(sites, numbers, strict=True))
        return None

    def _discovered(self, walk: Walk, log: LiveLog) -> list[_Located] | None:
        if not log.calls:  # of a model that is not recorded
            return None
        try:
            plan = joins_in_graph(walk, log)
            numbers, has_changed = self.table.take(plan, walk, log)
        except Exception as error:  # a graph like no other: recording continues without joins
            self._is_off = True
            self._on_problem(f"joins: the graph cannot be read ({type(error).__name__}: {error})")
            return None
        self.tables_changed |= has_changed
        self._varies |= bool(self._plans)
        self._needs_trace |= not log.is_traced and adds_unseen(walk)
        if log.is_traced or not self._needs_trace:
            self._plans = [(plan, numbers), *self._plans][:_MOST_PLANS]
        for module, reason in plan.unseen:
            self._on_problem(f"{what_is_hidden(reason)} of {self._spelled(module)}: {reason}")
        for module, reason in plan.passed_over:
            self._on_problem(f"no join in {self._spelled(module)}: {reason}")
        found = list(zip(plan.sites(walk) or [], numbers, strict=True))
        # What autograd does not see is found by a trace alone.
        self._needs_trace |= any(site.node is not None and site.fork is None for site, _ in found)
        self._needs_count |= any(site.tick >= 0 or site.branch_ticks for site, _ in found)
        return found

    def _spelled(self, path: str) -> str:
        """The path of a module in its model; the class name for the model itself."""
        root, _, inner = path.partition(".")
        model = {token(number): ref() for number, ref in self._roots}.get(root)
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
        self,
        found: list[_Located],
        rows: SplitRows,
        start: int,
        *,
        keeps_graph: bool,
        scale: Any,
    ) -> None:
        places = {site.join.index: (number, _sequence(site.node, start)) for site, number in found}
        self._missing.difference_update(number for _, number in found)
        outputs = self._addends.outputs([site for site, _ in found], start)
        for place, added in zip(places.values(), outputs, strict=True):
            if added is not None:
                rows.outputs[place] = added
        if (error := self._addends.failure) is not None:
            self._on_problem(f"what joins add: {type(error).__name__}: {error}")

        def note(join: Join, gradients: JoinGradients) -> None:
            rows.add(places[join.index], gradients, keeps=keeps_graph, scale=scale)

        sites = [site for site, _ in found]
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


def _sequence(node: Node | None, start: int) -> int:
    """The number of a node; of what has none a number that no other forward pass has."""
    return -1 - start if node is None else int(node._sequence_nr())
