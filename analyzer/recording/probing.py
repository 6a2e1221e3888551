"""Probes during a training: between steps, on the live model and its first batch."""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn

from analyzer.errors import AnalyzerError
from analyzer.joins.calls import keywords_of_call, tensors_in
from analyzer.joins.model_state import cloned, preserve_state
from analyzer.options import ProbePlan
from analyzer.probes import HeldBatch, Measurement, probe_named
from analyzer.probes.activations import num_samples
from analyzer.probes.loss_tape import LossTape, ReplayError
from analyzer.probes.sharpness import rule_for
from analyzer.recording.checkpoints import FirstWeights
from analyzer.recording.names import unwrapped
from analyzer.recording.plain import UnreadableError, is_sharded, plain
from analyzer.recording.skip_scaling import SkipsNotScaledError

__all__ = ["Call", "Held", "Probing", "digest_of", "measured", "said_of"]

_MOST_DIGESTED = 1 << 18
# A program that calls its models for long before it trains is not slowed down.
_MOST_TAPES = 20
OnMeasurement = Callable[[str, int, Measurement], None]


@dataclass(slots=True)
class Call:
    """One call of a root model: its arguments, under which precision it ran, and in which mode."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: tuple[str, torch.dtype] | None
    modes: Sequence[tuple[nn.Module, bool]] = ()


class StepLoss(Protocol):
    """The loss of one step as a function of the model's output."""

    def __call__(self, output: Any, targets: Any = None) -> Tensor:
        """Return the loss of an output of the same kind as the step's."""

    @property
    def labels(self) -> Tensor | None:
        """The classes of the samples, where the batch has classes."""


@dataclass(slots=True)
class Held:
    """One batch of a training: a call of the model, and its loss or why there is none.

    Args:
        step: The step that the batch is of.
        call: The call of the model.
        loss: The loss as a function of the model's output; None where it cannot be computed again.
        refusal: Why not.
        rule: How the optimizer moves the weights next, where that is known.
        memory: What probes keep from one measurement to the next.
    """

    step: int
    call: Call
    loss: StepLoss | None
    refusal: str | None
    rule: Any = None
    memory: dict[str, Any] = field(default_factory=dict)

    def hash(self) -> str:
        """Return a digest of the tensors that the model was called with."""
        return digest_of((self.call.args, self.call.kwargs))


def digest_of(inputs: object) -> str:
    """Return a digest of the tensors among a call's arguments: types, shapes, first elements.

    Empty where one of them is on a device, because reading it would wait for that device, or where
    it has no values that can be read.
    """
    digest = hashlib.sha256()
    for given in tensors_in(inputs):
        if given.device.type != "cpu" or given.layout is not torch.strided:
            return ""
        try:
            tensor = plain(given).detach()
            head = tensor.reshape(-1)[:_MOST_DIGESTED].resolve_conj().contiguous()
            values = head.view(torch.uint8).numpy().tobytes()
        except (UnreadableError, RuntimeError, TypeError):
            return ""
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(values)
    return digest.hexdigest()[:16]


class Probing:
    """Holds one batch, the first of the training, and measures at the steps that are asked for.

    The batch stays the same, so that what changes from step to step is the model alone.

    Args:
        plans: Which probe is due at which steps.
        on_measurement: Receives the name of a probe, the step and the table.
        on_batch: Called with the digest of the first batch, probes or not; empty where reading it
            would wait for a device.
        on_problem: Called with a sentence about a probe that cannot be measured.
        may_measure: Whether this process is the one that measures; asked when a probe is due.

    Attributes:
        seconds: Time spent in probes.
        held: The batch, once there is one.
        first: The weights before the first update.
        optimizers: Those of the training.
        of_training: Probes that the training's own passes may have measured already.
    """

    wants_all = False

    def __init__(
        self,
        plans: Sequence[ProbePlan],
        on_measurement: OnMeasurement,
        *,
        on_batch: Callable[[str], None],
        on_problem: Callable[[str], None],
        may_measure: Callable[[], bool] = lambda: True,
    ) -> None:
        self.seconds = 0.0
        self.held: Held | None = None
        self.first = FirstWeights(on_problem)
        self.optimizers: Iterable[Any] = ()
        self.of_training: Mapping[str, Callable[[], Measurement | None]] = {}
        self._plans = plans
        self._on_measurement = on_measurement
        self._on_batch = on_batch
        self._on_problem = on_problem
        self._may_measure = may_measure
        self._measured: dict[str, int] = {}
        self._is_watching = True
        self._nesting = 0
        self._num_calls = 0
        self._is_chained = self._is_in_parts = False
        self._digest = ""
        self._call: Call | None = None
        self._tape: LossTape | None = None
        self._tapes_left: list[LossTape] = []

    def close(self) -> None:
        """Leave nothing behind; say why nothing was measured, if the program is to blame."""
        if self._plans and self._is_watching and self._is_in_parts:
            names = ", ".join(plan.name for plan in self._plans)
            self._on_problem(
                f"probe {names}: no model is called as a whole where the gradient comes from, only "
                "its parts one by one; expected one call of one model. Let a module of yours call "
                "them in its forward()"
            )
        self._is_watching = False
        self._stop_tape()
        self._call = self.held = None

    # --- watching ----------------------------------------------------------------------------

    def enter(self, module: nn.Module, args: Any) -> None:
        """A call of a root begins."""
        if not self._is_watching:
            return
        self._nesting += 1
        if self._nesting > 1 or not torch.is_grad_enabled():
            return
        self._stop_tape()
        self.first.note_buffers(module)
        self._num_calls += 1
        kwargs = keywords_of_call(module)
        self._digest = digest_of((args, kwargs))
        # An earlier call may have been a mere look at the output's shape; its output may also be
        # what this call reads.
        self._is_chained |= self._num_calls > 1 and any(
            tensor.grad_fn is not None for tensor in tensors_in((args, kwargs))
        )
        if self._plans:
            # The model, or the program later, may write into its inputs.
            args, kwargs = cloned((tuple(args), dict(kwargs)), requires_grad=False)
            model = unwrapped(module)
            modes = tuple((part, part.training) for part in model.modules())
            self._call = Call(model, args, kwargs, _autocast(module), modes)

    def leave(self, module: nn.Module, output: Any) -> None:
        """A call of a root has ended: what follows, up to the backward pass, is the loss."""
        if not self._is_watching:
            return
        self._nesting = max(0, self._nesting - 1)
        if self._nesting or self._call is None or not torch.is_grad_enabled() or output is None:
            return
        if self._num_calls <= _MOST_TAPES:
            self._tape = LossTape(output)
            self._tape.start()

    def begin_backward(self, step: int, roots: Sequence[Any]) -> None:
        """The loss of the first step is complete: keep it as a function of the model's output."""
        if not self._is_watching:
            return
        call, tape, calls = self._call, self._tape, self._num_calls
        self._stop_tape()
        self._nesting, self._call, self._num_calls = 0, None, 0
        if calls == 0:
            self._is_in_parts = True
            return
        self._is_watching = False
        self._on_batch(self._digest)
        if call is None:
            return
        loss, refusal = None, None
        try:
            if tape is None:
                raise ReplayError("the loss of this step cannot be computed again")
            if self._is_chained:
                raise ReplayError(
                    "the loss of this step cannot be computed again: what the model is called with "
                    "comes from another call"
                )
            loss = tape.loss(roots)
            loss.check()
        except ReplayError as error:
            before = (
                f"{calls} calls of models led to this step, expected one; " if calls > 1 else ""
            )
            refusal = before + str(error)
        self.held = Held(step, call, None if refusal else loss, refusal)

    def _stop_tape(self) -> None:
        if self._tape is not None:
            self._tapes_left.append(self._tape)
            self._tape = None
        # A tape under a mode of the program's own goes as soon as that one is gone.
        self._tapes_left = [tape for tape in self._tapes_left if not tape.stop()]

    # --- measuring ---------------------------------------------------------------------------

    def is_due(self, step: int, *, is_last: bool = False) -> bool:
        """Whether any probe is to be measured at the weights of this step."""
        is_due = any(self._wants(plan, step, is_last) for plan in self._plans)
        return is_due and self._may_measure()

    def _wants(self, plan: ProbePlan, step: int, is_last: bool) -> bool:
        return (is_last or plan.is_due(step)) and self._measured.get(plan.name, -1) < step

    def measure(
        self, step: int, *, rates: Mapping[Any, Any] | None = None, is_last: bool = False
    ) -> None:
        """Measure what is due on the held batch, at the weights as they are now.

        Args:
            step: The step whose gradients are computed with them; the number of steps at the end.
            rates: Of the first step, whose update was made, the learning rates; the weights before.
            is_last: Whether the training has ended.
        """
        self._stop_tape()
        if self.held is None:
            return
        started = time.perf_counter()
        self.held.rule = rule_for(self.held.call.model, self.optimizers, rates)
        for plan in self._plans:
            if self._wants(plan, step, is_last):
                self._measured[plan.name] = step
                self._measure_one(plan.name, step, self.held, is_first=rates is not None)
        self.seconds += time.perf_counter() - started

    def _measure_one(self, name: str, step: int, held: Held, *, is_first: bool) -> None:
        try:
            measurement = self.of_training.get(name, lambda: None)()
            if measurement is None:
                _refuse_other_ranks(held.call.model)
                with self.first.put_back(held.call.model) if is_first else nullcontext():
                    measurement = measured(name, held)
        # The training continues whatever a probe does, also where shortcuts cannot be scaled.
        except (Exception, SkipsNotScaledError) as error:
            self._on_problem(f"probe {name}: {said_of(error, held)}")
            return
        self._on_measurement(name, step, measurement)


def _refuse_other_ranks(model: nn.Module) -> None:
    """Refuse a model whose forward pass waits for other ranks, which do not measure the probe."""
    has_others = distributed.is_available() and distributed.is_initialized()
    for path, module in model.named_modules():
        is_sharded_one = any(map(is_sharded, module.parameters(recurse=False)))
        if is_sharded_one or (isinstance(module, nn.SyncBatchNorm) and has_others):
            why = "its parameters are sharded" if is_sharded_one else "SyncBatchNorm"
            raise AnalyzerError(
                f"each call of module {path or type(model).__name__} waits for other ranks "
                f"({why}), and a probe is measured by one rank alone"
            )


def said_of(error: BaseException, held: Held) -> str:
    """Return why a probe was not measured: its own sentence, or what went wrong in it."""
    if isinstance(error, AnalyzerError | ValueError | SkipsNotScaledError):
        return str(error)
    shapes = [list(tensor.shape) for tensor in tensors_in((held.call.args, held.call.kwargs))]
    reason = (str(error).splitlines() or ["no reason"])[0]
    return (
        f"it failed on inputs of shapes {shapes} ({type(error).__name__}: {reason}). Probes take "
        "the first axis of inputs and outputs for the samples"
    )


def measured(
    name: str, held: Held, probe: Callable[[HeldBatch], Measurement] | None = None
) -> Measurement:
    """Measure one probe on the held batch; the time that it took stands in the metadata.

    Args:
        name: The probe.
        held: The batch.
        probe: What measures it; None for the probe with its defaults.

    Raises:
        ReplayError: If the loss is needed and cannot be computed again.
    """
    cast = held.call.autocast
    precision: Any = nullcontext() if cast is None else torch.autocast(*cast)
    with _same_world(held.call.model), precision:
        for module, mode in held.call.modes:
            module.training = mode
        started = time.perf_counter()
        measurement = (probe or probe_named(name))(_batch(held))
        seconds = time.perf_counter() - started
    noted = {
        "num_batches": "1",
        "num_samples": str(num_samples((held.call.args, held.call.kwargs))),
        **measurement.metadata,
        "seconds": f"{seconds:.3f}",
        "batch_step": str(held.step),
        "batch_hash": held.hash(),
    }
    return Measurement(measurement.columns, noted)


def _batch(held: Held) -> HeldBatch:
    call = held.call
    if call.args and call.kwargs:
        inputs: Any = _positional(call)
    else:
        # One argument that is itself a list or a mapping is not to be taken for several.
        is_plain = len(call.args) == 1 and isinstance(call.args[0], Tensor)
        inputs = call.kwargs or (call.args[0] if is_plain else call.args)
    refusal = held.refusal

    def refuse(output: Any, targets: Any) -> Tensor:
        raise ReplayError(refusal or "the loss of this step is not known")

    loss = held.loss
    labels = None if loss is None else loss.labels
    return HeldBatch(call.model, inputs, None, loss or refuse, labels, held.rule, held.memory)


def _positional(call: Call) -> dict[str, Any]:
    """Positional arguments under the names that the model's ``forward`` gives them."""
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


@contextmanager
def _same_world(model: nn.Module) -> Iterator[None]:
    """Everything that a probe might change in passing is put back."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None  # a backward pass of the probe must not add to the program's
    try:
        with preserve_state(model), torch.enable_grad():
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
