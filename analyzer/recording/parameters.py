"""The parameters of a training: their table, and what the optimizer receives for each of them."""

import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from analyzer.recording.hook_classes import parameters
from analyzer.recording.layers import Layers
from analyzer.recording.moments import device_norms
from analyzer.recording.names import clean_path, unwrapped
from analyzer.recording.plain import UnreadableError, is_sharded, plain, said
from analyzer.recording.statistics import (
    GradientRow,
    gradient_row,
    gradient_rows,
    host_norm,
    real_values,
)

__all__ = ["ParameterRow", "Parameters", "norms"]


@dataclass(slots=True)
class ParameterRow:
    """What is known of one parameter in one step; numbers on the host or still on the device."""

    gradient: GradientRow | None = None
    norm: float | Tensor | None = None
    update_norm: float | Tensor | None = None
    norm_before_clipping: float | Tensor | None = None


@dataclass(slots=True)
class _Entry:
    root: int | None
    path: str
    owners: list[int] = field(default_factory=list)
    shape: list[int] = field(default_factory=list)
    num_elements: int = 0
    placement: str = "replicated"
    tensor: weakref.ref[Tensor] | None = None


def norms(tensors: Sequence[Tensor]) -> list[float | Tensor | None]:
    """Return the norm of each tensor: on the host by one careful kernel each, else by foreach.

    None for a tensor that has no values that can be read.
    """
    results: list[float | Tensor | None] = [None] * len(tensors)
    on_device: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        if tensor.is_cpu:
            with suppress(UnreadableError):
                results[i] = host_norm(real_values(tensor))
        else:
            on_device.setdefault((tensor.device, tensor.dtype), []).append(i)
    for places in on_device.values():
        measured = device_norms([real_values(tensors[i]) for i in places])
        for i, result in zip(places, measured, strict=True):
            results[i] = result
    return results


class Parameters:
    """Parameters by identity, in ``named_parameters()`` order of each root as it was found.

    Args:
        on_problem: Called with a sentence about a parameter that cannot be read.
    """

    def __init__(self, on_problem: Callable[[str], None]) -> None:
        self._numbers: dict[int, int] = {}
        self._entries: list[_Entry] = []
        self._on_problem = on_problem
        self.optimized: set[int] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def add_root(self, number: int, root: nn.Module) -> None:
        """Add the parameters of a root model that are not known yet."""
        inner = unwrapped(root)
        owners: dict[int, list[int]] = {}
        for module in inner.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    owners.setdefault(id(parameter), []).append(id(module))
        for path, parameter in inner.named_parameters():
            if id(parameter) not in self._numbers:
                self._add(parameter, _Entry(number, clean_path(path), owners[id(parameter)]))

    def _add(self, parameter: Tensor, entry: _Entry) -> int:
        number = len(self._entries)
        self._numbers[id(parameter)] = number
        # The reference removes the entry, so that another tensor at the same address is not taken
        # for this one.
        numbers, key = self._numbers, id(parameter)
        entry.tensor = weakref.ref(parameter, lambda _: numbers.pop(key, None))
        if is_sharded(parameter):
            entry.placement = "sharded"
        self._entries.append(entry)
        return number

    def number(self, parameter: Tensor) -> int | None:
        """Return the id of a known parameter, else None."""
        return self._numbers.get(id(parameter))

    def has(self, tensor: Tensor) -> bool:
        """Whether a tensor is a known parameter."""
        return id(tensor) in self._numbers

    def add_free(self, tensor: Tensor) -> int:
        """Add a tensor that an optimizer holds and no module: named after its variable."""
        names = [name for name, value in vars(sys.modules["__main__"]).items() if value is tensor]
        name = names[0] if names else f"parameter{len(self._entries)}"
        return self._add(tensor, _Entry(None, name))

    def module_path(self, number: int) -> str:
        """Return the path of the module that owns a parameter, without the root's prefix."""
        return self._entries[number].path.rpartition(".")[0]

    def owners(self, layers: Layers) -> dict[int, str]:
        """Return the names of the modules that own the parameters, by parameter."""
        prefixes = layers.prefixes()
        return {
            number: ""
            if entry.root is None
            else layers.spelled(entry.root, self.module_path(number), prefixes)
            for number, entry in enumerate(self._entries)
        }

    def trainable(self) -> list[tuple[int, Tensor]]:
        """Return all parameters that are alive and want a gradient."""
        alive = (
            (number, entry.tensor() if entry.tensor else None)
            for number, entry in enumerate(self._entries)
        )
        return [(number, p) for number, p in alive if p is not None and p.requires_grad]

    def rows(self, layers: Layers) -> list[dict[str, Any]]:
        """Return the rows of ``parameters.parquet``."""
        prefixes, first_layers, rows = layers.prefixes(), layers.first_layers(), []
        for number, entry in enumerate(self._entries):
            tensor = entry.tensor() if entry.tensor else None
            if tensor is not None and not nn.parameter.is_lazy(tensor):
                entry.shape, entry.num_elements = list(tensor.shape), tensor.numel()
            used_by = [first_layers[owner] for owner in entry.owners if owner in first_layers]
            wants_gradient = tensor is None or tensor.requires_grad
            rows.append(
                {
                    "parameter": number,
                    "name": ("" if entry.root is None else prefixes[entry.root]) + entry.path,
                    "layer": min(used_by, default=None),
                    "shape": entry.shape,
                    "num_elements": entry.num_elements,
                    "trained": wants_gradient and (not self.optimized or number in self.optimized),
                    "placement": entry.placement,
                }
            )
        return rows

    def read(self, tensors: Iterable[tuple[int, Tensor]], rows: dict[int, ParameterRow]) -> None:
        """Read gradients and norms of parameters into the rows of the step, once each."""
        new: list[tuple[int, Tensor]] = []
        for pair in tensors:
            row = rows.setdefault(pair[0], ParameterRow())
            if row.norm is None:
                new.append(pair)
        on_device: list[tuple[int, Tensor, Tensor | None]] = []
        measured = parameters([parameter for _, parameter in new])
        for (number, parameter), numbers in zip(new, measured, strict=True):
            row = rows[number]
            if numbers is not None:
                row.norm, row.gradient = numbers
                continue
            try:
                values, gradient = plain(parameter), parameter.grad
                if not values.is_cpu:
                    on_device.append(
                        (number, values, None if gradient is None else plain(gradient))
                    )
                    continue
                row.norm = host_norm(real_values(values))
                if gradient is not None:
                    row.gradient = gradient_row(gradient, count_zeros=False)
            except Exception as error:  # the training must continue whatever a parameter is
                self._on_problem(f"parameter {self._entries[number].path}: {said(error)}")
        if on_device:
            self._read_device(on_device, rows)

    def _read_device(
        self, tensors: Sequence[tuple[int, Tensor, Tensor | None]], rows: dict[int, ParameterRow]
    ) -> None:
        """The same for parameters on devices and their gradients, in few launches."""
        for (number, *_), norm in zip(tensors, norms([p for _, p, _ in tensors]), strict=True):
            rows[number].norm = norm
        given = [(number, gradient) for number, _, gradient in tensors if gradient is not None]
        for (number, _), row in zip(given, gradient_rows([g for _, g in given]), strict=True):
            rows[number].gradient = row

    def note_before_clipping(
        self, gradients: Sequence[Tensor], rows: dict[int, ParameterRow]
    ) -> None:
        """Note the norms of gradients that are about to be clipped for the first time."""
        by_gradient = {
            id(parameter.grad): number
            for number, parameter in self.trainable()
            if parameter.grad is not None
        }
        pairs = [(by_gradient[id(g)], g) for g in gradients if id(g) in by_gradient]
        new = [
            (number, g)
            for number, g in pairs
            if number not in rows or rows[number].norm_before_clipping is None
        ]
        for (number, _), norm in zip(new, norms([g for _, g in new]), strict=True):
            rows.setdefault(number, ParameterRow()).norm_before_clipping = norm
