"""Probes during a training: between steps, on the live model and the batch of the step."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analyzer.joins.untouched import cloned, untouched
from analyzer.probes import HeldBatch, Measurement, probe_named
from analyzer.probes.replay import LossTape, RecordedLoss, ReplayError
from analyzer.recording.live_log import keywords_of_the_call
from analyzer.recording.names import unwrapped
from analyzer.recording.schedule import ProbePlan

__all__ = ["Probing"]

OnMeasurement = Callable[[str, int, Measurement], None]


@dataclass(slots=True)
class _Call:
    """One call of a root model: its arguments, and under which precision it ran."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    versions: list[tuple[Tensor, int]]
    autocast: tuple[str, torch.dtype] | None


@dataclass(slots=True)
class _Step:
    """What a probe needs of a step: one call, and its loss or why there is none."""

    number: int
    call: _Call
    loss: RecordedLoss | None
    refusal: str | None


class Probing:
    """Holds the last batch of each step, and measures at the boundaries that are asked for.

    Args:
        plans: Which probe is due at which steps.
        on_measurement: Receives the name of a probe, the step and the table.
        on_problem: Called with a sentence about a probe that cannot be measured.
    """

    def __init__(
        self,
        plans: Sequence[ProbePlan],
        on_measurement: OnMeasurement,
        on_problem: Callable[[str], None],
    ) -> None:
        self.seconds = 0.0
        self._plans = plans
        self._on_measurement = on_measurement
        self._on_problem = on_problem
        self._measured: dict[str, int] = {}
        self._nesting = 0
        self._upcoming = 0
        self._num_calls = 0
        self._call: _Call | None = None
        self._tape: LossTape | None = None
        self._tapes_left: list[LossTape] = []
        self._step: _Step | None = None
        self._is_measuring = False

    @property
    def is_on(self) -> bool:
        """Whether any probe was asked for."""
        return bool(self._plans)

    wants_all = False

    def close(self) -> None:
        """Leave nothing behind."""
        self._drop_tape()
        self._step = self._call = None

    # --- watching ----------------------------------------------------------------------------

    def await_step(self, step: int) -> None:
        """The next forward pass with gradient belongs to this step."""
        self._upcoming = step

    def enter(self, module: nn.Module, args: Any) -> None:
        """A call of a root begins."""
        if not self._plans or self._is_measuring:
            return
        self._nesting += 1
        if self._nesting > 1 or not torch.is_grad_enabled():
            return
        self._drop_tape()
        self._num_calls += 1
        kwargs = keywords_of_the_call()
        if any(plan.is_due(self._upcoming) for plan in self._plans):
            args, kwargs = cloned((tuple(args), dict(kwargs)), requires_grad=False)
        tensors = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._call = _Call(
            unwrapped(module),
            tuple(args),
            dict(kwargs),
            [(tensor, tensor._version) for tensor in tensors],
            _autocast(module),
        )

    def leave(self, module: nn.Module, output: Any) -> None:
        """A call of a root has ended: what follows, up to the backward pass, is the loss."""
        if not self._plans or self._is_measuring:
            return
        self._nesting = max(0, self._nesting - 1)
        if self._nesting or self._call is None or not torch.is_grad_enabled() or output is None:
            return
        if self._num_calls == 1:
            self._tape = LossTape(output)
            self._tape.start()

    def begin_backward(self, step: int, roots: Sequence[Any]) -> None:
        """The loss of a step is complete: keep it as a function of the model's output."""
        if not self._plans or self._is_measuring:
            return
        self._nesting = 0
        call, tape, calls = self._call, self._tape, self._num_calls
        self._stop_tape()
        self._call, self._num_calls = None, 0
        if call is None:
            return
        loss, refusal = None, None
        try:
            if tape is None:
                raise ReplayError(
                    f"the loss of this step cannot be computed again: it comes from {calls} calls "
                    "of models, expected one"
                )
            loss = tape.loss(roots)
        except ReplayError as error:
            refusal = str(error)
        self._step = _Step(step, call, loss, refusal)

    def _stop_tape(self) -> None:
        if self._tape is not None:
            self._tapes_left.append(self._tape)
            self._tape = None
        # A tape under a mode of the program's own goes as soon as that one is gone.
        self._tapes_left = [tape for tape in self._tapes_left if not tape.stop()]

    def _drop_tape(self) -> None:
        self._stop_tape()
        self._call = None

    # --- measuring ---------------------------------------------------------------------------

    def is_due(self, step: int, *, is_last: bool = False) -> bool:
        """Whether any probe is to be measured after this step."""
        return any(self._wants(plan, step, is_last) for plan in self._plans)

    def _wants(self, plan: ProbePlan, step: int, is_last: bool) -> bool:
        return (is_last or plan.is_due(step)) and self._measured.get(plan.name, -1) < step

    def measure(self, step: int, *, is_last: bool = False) -> None:
        """Measure what is due after a step, on its last batch and the weights as they are now."""
        held = self._step
        self._stop_tape()
        if held is None or held.number != step or self._is_measuring:
            return
        started = time.perf_counter()
        self._is_measuring = True
        try:
            for plan in self._plans:
                if self._wants(plan, step, is_last):
                    self._measured[plan.name] = step
                    self._measure_one(plan.name, held)
        finally:
            self._is_measuring = False
            self.seconds += time.perf_counter() - started

    def _measure_one(self, name: str, held: _Step) -> None:
        try:
            _check_inputs(held.call)
            if held.loss is not None:
                held.loss.check()
            with _same_world(held.call.model), _precision(held.call.autocast):
                started = time.perf_counter()
                measurement = probe_named(name)(_batch(held))
                seconds = time.perf_counter() - started
        except Exception as error:  # the training goes on whatever a probe does
            reason = str(error) if isinstance(error, ReplayError | ValueError) else repr(error)
            self._on_problem(f"probe {name}: {reason}")
            return
        noted = {**measurement.metadata, "seconds": f"{seconds:.3f}"}
        self._on_measurement(name, held.number, Measurement(measurement.columns, noted))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, str | Tensor) or not hasattr(value, "__iter__"):
        yield value
        return
    if isinstance(value, tuple | list | type({}.values())):
        for item in value:
            yield from _leaves(item)


def _check_inputs(call: _Call) -> None:
    if any(tensor._version != version for tensor, version in call.versions):
        raise ReplayError(
            "the batch of the step was overwritten since; expected one that stays as it is. Let "
            "the probe run at a step that --probe NAME:EVERY names, where the batch is copied"
        )


def _batch(held: _Step) -> HeldBatch:
    call = held.call
    if call.args and call.kwargs:
        inputs: Any = _positional(call)
    else:
        inputs = call.kwargs or (call.args[0] if len(call.args) == 1 else call.args)
    refusal = held.refusal

    def refuse(output: Any, targets: Any) -> Tensor:
        raise ReplayError(refusal or "the loss of this step is not known")

    loss = held.loss
    labels = None if loss is None else loss.labels
    return HeldBatch(call.model, inputs, None, loss or refuse, labels)


def _positional(call: _Call) -> dict[str, Any]:
    """Positional arguments under the names that the model's ``forward`` gives them."""
    import inspect

    bound = inspect.signature(call.model.forward).bind(*call.args, **call.kwargs)
    arguments: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            raise ReplayError(
                f"the model is called with *{name} and keyword arguments at once; expected named "
                "arguments"
            )
        arguments.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    return arguments


def _autocast(module: nn.Module) -> tuple[str, torch.dtype] | None:
    device = next((p.device.type for p in module.parameters()), "cpu")
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return device, torch.get_autocast_dtype(device)


def _precision(autocast: tuple[str, torch.dtype] | None) -> Any:
    return nullcontext() if autocast is None else torch.autocast(autocast[0], autocast[1])


@contextmanager
def _same_world(model: nn.Module) -> Iterator[None]:
    """Everything that a probe might change in passing is put back."""
    python, numpy = random.getstate(), np.random.get_state()
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        with untouched(model), torch.enable_grad():
            yield
    finally:
        for parameter, gradient in gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient
        random.setstate(python)
        np.random.set_state(numpy)
