"""Under which conditions a training runs: what explains its numbers and stands in no table.

Inputs and loss of the first step, weights whose units are all alike at the first update, whether
gradients are cleared between updates, and which normalization layers are in eval mode. All of it is
one field of ``run.json``.
"""

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from analyzer.joins.calls import keywords_of_call, tensors_in
from analyzer.joins.modes import UnseenReference
from analyzer.options import RecordOptions
from analyzer.recording.fate import version_of
from analyzer.recording.loss_graph import about_loss, class_entropy, class_targets
from analyzer.recording.models import Models
from analyzer.recording.plain import Transfer, UnreadableError, plain
from analyzer.recording.steps import Guard

__all__ = ["Conditions"]

_MOST_INPUTS = 4
# Rows that are equal but for rounding. At the first update the gradient may be rounding alone:
# through a last layer of equal rows it is a sum of p − y over the classes, which is 0.
_ALIKE, _LOOKS_AT_UNITS = 1e-5, 2


class Conditions:
    """Notes the conditions of a training; nothing waits for a device, nothing grows with steps.

    Args:
        options: Which steps are looked at.
        models: Returns the models of the recording.
        is_other_thread: Whether what this thread does is not recorded.
    """

    wants_all = False

    def __init__(
        self,
        options: RecordOptions,
        models: Callable[[], Models],
        is_other_thread: Callable[[], bool],
    ) -> None:
        self._options, self._models, self._is_other = options, models, is_other_thread
        self._has_begun = self._in_pass = False
        self._inputs: list[dict[str, Any]] = []
        self._loss: dict[str, Any] = {}
        self._numbers: list[tuple[dict[str, Any], str]] = []
        self._waiting: list[Tensor] = []
        self._transfers: list[tuple[list[tuple[dict[str, Any], str]], Transfer]] = []
        self._units: dict[str, float | None] = {}
        self._kept: dict[int, _Received] = {}
        self._known: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._clearing = {"updates": 0, "of": 0}
        self._norms: tuple[int, list[Any]] = (0, [])
        self._eval: dict[str, dict[str, int]] = {}
        self._num_looks = 0

    def watch(self, guard: Guard) -> list[Any]:
        """Hook every optimizer of this process; return what removes the hooks."""
        return [
            register_optimizer_step_pre_hook(guard(self._before_update)),
            register_optimizer_step_post_hook(guard(self._after_update)),
        ]

    # --- the first step ----------------------------------------------------------------------

    def enter(self, module: Any, args: Any) -> None:
        """A call of a root begins: note what it is called with."""
        if self._has_begun or self._inputs or not torch.is_grad_enabled():
            return
        for tensor in tensors_in((args, keywords_of_call(module))):
            if len(self._inputs) == _MOST_INPUTS:
                return
            about = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            self._inputs.append(about)
            if tensor.is_floating_point() and tensor.dim() > 1 and tensor.numel():
                try:
                    values = plain(tensor).detach()
                    norm = torch.linalg.vector_norm(values, dtype=torch.float32)
                    self._await(about, "root_mean_square", norm / math.sqrt(values.numel()))
                    self._await(about, "largest", values.abs().amax())
                except (UnreadableError, RuntimeError, TypeError):
                    continue  # it has no values that can be read

    def leave(self, module: Any, output: Any) -> None:
        """A call of a root has ended."""

    def _await(self, about: dict[str, Any], name: str, value: Tensor) -> None:
        """A number that may still be on a device."""
        self._numbers.append((about, name))
        self._waiting.append(value.float())

    def _send(self) -> None:
        """Start to copy the numbers that wait."""
        if self._waiting:
            self._transfers.append((self._numbers, Transfer(self._waiting)))
            self._numbers, self._waiting = [], []

    def _begin_first(self, roots: Sequence[Any]) -> None:
        """The loss of the first step is complete."""
        self._has_begun = True
        tensors = [root for root in roots if isinstance(root, Tensor)]
        rows = next((one["shape"][0] for one in self._inputs if one["shape"]), None)
        try:
            self._loss |= about_loss(tensors, rows)
            node = class_targets(tensors)
            if node is not None:
                self._await(self._loss, "class_entropy", class_entropy(node))
                self._loss["targets"] = node._saved_target.numel()
        except (RuntimeError, AttributeError):
            pass  # a stand-in of a compiler
        self._send()

    # --- passes and updates ------------------------------------------------------------------

    def begin_pass(self, step: int, roots: Sequence[Any]) -> None:
        """A backward pass of the training begins."""
        self._in_pass = True
        if not self._has_begun:
            self._begin_first(roots)
        for key in [key for key, received in self._kept.items() if not received.is_as_it_was()]:
            del self._kept[key]
        if self._options.measures_updates(step):
            self._look_at_modes(step)

    def end_pass(self) -> None:
        """It has ended: what was kept from the last update has been added to."""
        self._in_pass = False
        for received in self._kept.values():
            received.add_pass()

    def _look_at_modes(self, step: int) -> None:
        """Note the layers that normalize by running statistics though their weights are trained."""
        models = self._models()
        sites = models.layers.sites
        if self._norms[0] != len(sites):
            found = [site for site in sites if isinstance(site.module(), _NormBase)]
            self._norms = len(sites), found
        self._num_looks += 1
        for site in self._norms[1]:
            module = site.module()
            if module is None or module.training or module.running_mean is None:
                continue
            if module.weight is None or module.weight.requires_grad:
                seen = self._eval.setdefault(models.path(site), {"steps": 0, "first_step": step})
                seen["steps"] += 1
                seen["last_step"] = step

    def _before_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._concerns(optimizer):
            return
        if self._known[optimizer] < _LOOKS_AT_UNITS:
            self._known[optimizer] += self._look_at_units(optimizer)
        received = self._kept.get(id(optimizer))
        if received is not None and not received.num_passes:
            return  # a second update with the same gradients
        self._clearing["of"] += 1
        self._clearing["updates"] += received is not None

    def _look_at_units(self, optimizer: Optimizer) -> bool:
        """Compare the units of each weight before an update; return whether there is a gradient.

        Where all rows of a weight are equal, and those of its gradient, its units are one, and stay
        one. The number is by how much of the largest element the rows differ.
        """
        number, has_begun = self._models().parameters.number, False
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            has_begun |= parameter.grad is not None
            is_weight = parameter.dim() > 1 and len(parameter) > 1
            if not is_weight or parameter.grad is None or number(parameter) is None:
                continue
            try:
                pair = [plain(x).detach() for x in (parameter, parameter.grad)]
                if len(pair[0]) < 2:
                    continue  # this rank holds one row of it, or none
                name = str(number(parameter))
                if pair[0].is_cpu and not torch.allclose(pair[0][0], pair[0][1], _ALIKE, 0.0):
                    self._units.pop(name, None)
                    continue
                ends = [(x.amax(0), x.amin(0)) for x in pair]
                apart = [(high - low).amax() for high, low in ends]
                sizes = [torch.maximum(high.abs(), low.abs()).amax() for high, low in ends]
                # A weight of zeros has equal rows, a gradient of zeros tells nothing: NaN.
                spreads = apart[0] / sizes[0].clamp_min(1e-30), apart[1] / sizes[1]
                self._await(self._units, name, torch.maximum(*spreads))
            except (UnreadableError, RuntimeError, TypeError):
                continue
        self._send()
        return has_begun

    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._concerns(optimizer):
            self._kept.pop(id(optimizer), None)
            received = _Received.of(optimizer, is_in_pass=self._in_pass)
            if received is not None:
                self._kept[id(optimizer)] = received

    def _concerns(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer holds parameters of the recording."""
        if self._is_other():
            return False
        if optimizer not in self._known:
            number = self._models().parameters.number
            held = (p for group in optimizer.param_groups for p in group["params"])
            if not any(number(parameter) is not None for parameter in held):
                return False
            self._known[optimizer] = 0
            self._kept.pop(id(optimizer), None)  # that of one that is gone
        return True

    # --- what is known -----------------------------------------------------------------------

    def fields(self, *, is_last: bool = False) -> dict[str, Any]:
        """Return what ``run.json`` says, as far as it is known; at last it waits for devices."""
        while self._transfers and (is_last or self._transfers[0][1].is_done()):
            numbers, transfer = self._transfers.pop(0)
            for (about, name), values in zip(numbers, transfer.arrays(), strict=True):
                value = float(values[0])
                about[name] = value if math.isfinite(value) else None
        models = self._models()
        conditions = {
            "inputs": [dict(one) for one in self._inputs],
            "loss": dict(self._loss),
            "gradients_kept": dict(self._clearing),
            "eval_mode": {
                "looks": self._num_looks,
                "layers": {name: dict(seen) for name, seen in self._eval.items()},
            },
            "alike_units": [
                int(number)
                for number, apart in self._units.items()
                if apart is not None and apart <= _ALIKE
            ],
            "without_optimizer": models.parameters.without_optimizer(),
            "roots": len(models.layers.roots),
        }
        return {"conditions": conditions}


class _Received:
    """The gradient of one parameter as an optimizer received it: whether it was cleared since."""

    def __init__(self, parameter: Tensor, *, is_in_pass: bool) -> None:
        self._parameter = UnseenReference(parameter)
        self._mark = self._marked()
        self._skips_pass = is_in_pass
        self.num_passes = 0

    @classmethod
    def of(cls, optimizer: Optimizer, *, is_in_pass: bool) -> "_Received | None":
        """Return that of the first parameter with a gradient; None where none has one."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    return cls(parameter, is_in_pass=is_in_pass)
        return None

    def _marked(self) -> tuple[int, int] | None:
        """Which tensor the gradient is, and how often it was written to."""
        parameter = self._parameter()
        gradient = None if parameter is None else parameter.grad
        return None if gradient is None else (id(gradient), version_of(gradient))

    def is_as_it_was(self) -> bool:
        """Whether nothing has been written to the gradient since it was last looked at."""
        return self._mark is not None and self._mark == self._marked()

    def add_pass(self) -> None:
        """A backward pass has added to it, unless the optimizer stepped inside of that pass."""
        if self._skips_pass:
            self._skips_pass = False
            return
        self.num_passes += 1
        self._mark = self._marked()
