"""The parameters of a training: their table, and what the optimizer receives for each of them."""

import math
import sys
import weakref
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, distributed, nn

from analyzer.joins.modes import UnseenReference
from analyzer.recording.device import device_norms
from analyzer.recording.hook_classes import parameters
from analyzer.recording.layers import Layers
from analyzer.recording.names import clean_path, models_that_hold, unwrapped
from analyzer.recording.part import ParameterRows
from analyzer.recording.plain import UnreadableError, plain, said
from analyzer.recording.ranks import Piece, num_parts, pieces
from analyzer.recording.statistics import (
    gradient_row,
    gradient_rows,
    host_norm,
    real_values,
)

__all__ = ["Parameters", "norms"]


@dataclass(slots=True)
class _Entry:
    root: int | None
    path: str
    owners: list[int] = field(default_factory=list)
    shape: list[int] = field(default_factory=list)
    num_elements: int = 0
    num_parts: int = 1
    num_here: int = 0
    is_piece: bool = False
    tensor: UnseenReference | None = None
    model: weakref.ref[nn.Module] | None = None


def _no_tensor() -> None:
    return None


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

    Attributes:
        optimized: Those that an optimizer holds that has made an update.
        untrained: Those that stand in the table as not trained.
        weights: Where the ranks hold some in parts: how much the square of a norm here adds to that
            over all ranks, by parameter; under -1 that of one which each rank has whole.
    """

    def __init__(self, on_problem: Callable[[str], None]) -> None:
        self.optimized: set[int] = set()
        self.untrained: set[int] = set()
        self.weights: dict[int, float] = {}
        self._numbers: dict[int, int] = {}
        self._entries: list[_Entry] = []
        self._others: dict[int, UnseenReference] = {}
        self._on_problem = on_problem

    def __len__(self) -> int:
        return len(self._entries)

    def forget_roots(self) -> None:
        """The models are about to be added again; a parameter that was met keeps its number."""
        if not self.optimized:
            self._entries.clear()
            self._numbers.clear()
        for entry in self._entries:
            entry.root = None

    def add_root(self, number: int, root: nn.Module, layers: Layers) -> None:
        """Name the parameters of a root model, and add those that are not known yet.

        One that was met before its model takes its name there. A parameter that replaces one
        that the model no longer has keeps its number.
        """
        inner = unwrapped(root)
        owners: dict[int, list[int]] = {}
        for module in inner.modules():
            for parameter in module._parameters.values():
                site = layers.site_of(module)
                if parameter is not None and site is not None:
                    owners.setdefault(id(parameter), []).append(site.number)
        named, cut = list(inner.named_parameters()), pieces(root)
        here = {id(parameter) for _, parameter in named}
        left = {
            entry.path: place
            for place, entry in enumerate(self._entries)
            if entry.root == number and id(entry.tensor and entry.tensor()) not in here
        }
        for path, parameter in named:
            place, path = self._numbers.get(id(parameter)), clean_path(path)
            entry = _Entry(None, "") if place is None else self._entries[place]
            if entry.root in (None, number):
                entry.root, entry.path, entry.model = number, path, weakref.ref(root)
                entry.owners = owners.get(id(parameter), [])
            if place is None:
                self._put(parameter, entry, left.get(path))
            if id(parameter) in cut:
                self._note_piece(self._numbers[id(parameter)], cut[id(parameter)])

    def rename(self, number: int, root: nn.Module) -> bool:
        """Give parameters of a root the names that they have now; return whether one changed."""
        has_changed = False
        for path, parameter in unwrapped(root).named_parameters():
            place, path = self._numbers.get(id(parameter)), clean_path(path)
            entry = None if place is None else self._entries[place]
            if entry is not None and entry.root == number and entry.path != path:
                entry.path, has_changed = path, True
        return has_changed

    def _put(self, parameter: Tensor, entry: _Entry, place: int | None) -> None:
        """Give a tensor a number: a new one, or that of a tensor whose place it takes."""
        if place is None:
            place = len(self._entries)
            self._entries.append(entry)
        former = (self._entries[place].tensor or _no_tensor)()
        if former is not None:  # an optimizer may still hold it
            self._numbers.pop(id(former), None)
            self.leave_out([former])
        self._entries[place] = entry
        # The reference removes the entry, so that another tensor at the same address is not taken
        # for this one.
        numbers, key = self._numbers, id(parameter)
        entry.tensor = UnseenReference(parameter, lambda _: numbers.pop(key, None))
        numbers[key] = place
        self._others.pop(key, None)
        entry.num_parts = num_parts(parameter)
        if entry.num_parts > 1:
            with suppress(UnreadableError):
                entry.num_here = plain(parameter).numel()
            # Asked now: at the end the program may have left the group.
            num_ranks = distributed.get_world_size()
            self.weights |= {-1: 1 / num_ranks, place: entry.num_parts / num_ranks}

    def _note_piece(self, place: int, piece: Piece) -> None:
        """Note that this rank holds a piece of a parameter."""
        entry = self._entries[place]
        entry.is_piece, entry.shape, entry.num_elements = True, piece.shape, math.prod(piece.shape)
        entry.num_parts, entry.num_here = piece.num_parts, piece.num_here
        num_ranks = distributed.get_world_size()
        self.weights |= {-1: 1 / num_ranks, place: entry.num_parts / num_ranks}

    def number(self, parameter: Tensor) -> int | None:
        """Return the id of a known parameter, else None."""
        return self._numbers.get(id(parameter))

    def has(self, tensor: Tensor) -> bool:
        """Whether a tensor is a known parameter."""
        return id(tensor) in self._numbers

    def unknown(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return those that have no number, and were not left out either."""
        numbers, others = self._numbers, self._others
        return [t for t in tensors if id(t) not in numbers and id(t) not in others]

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """These are no parameters of the recording."""
        for tensor in tensors:
            forget = partial(self._others.pop, id(tensor))
            self._others[id(tensor)] = UnseenReference(tensor, forget)

    def adopt(self, tensors: Sequence[Tensor]) -> None:
        """Add tensors that an optimizer holds and no model that was called.

        They have the names of the model that owns them, which may be called later or never; else
        that of their variable. A name whose tensor is gone goes to the next one of that name, as
        in a program that optimizes one input after the other.
        """
        for model in models_that_hold(tensors):
            for path, parameter in unwrapped(model).named_parameters():
                if self.number(parameter) is None:
                    entry = _Entry(None, clean_path(path), model=weakref.ref(model))
                    self._put(parameter, entry, None)
        variables = {id(value): name for name, value in vars(sys.modules["__main__"]).items()}
        for tensor in tensors:
            if self.number(tensor) is not None:
                continue
            name = variables.get(id(tensor), "")
            free = (
                place
                for place, entry in enumerate(self._entries)
                if entry.root is None
                and (entry.tensor is None or entry.tensor() is None)
                and (entry.path == name or (not name and entry.shape == list(tensor.shape)))
            )
            self._put(
                tensor,
                _Entry(None, name or f"parameter{len(self._entries)}", shape=list(tensor.shape)),
                next(free, None),
            )

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

    def has_unfrozen(self, numbers: Container[int]) -> bool:
        """Whether one of these stands in the table as not trained, and is trained by now."""
        return any(
            number in numbers
            and number in self.optimized
            and (tensor := (self._entries[number].tensor or _no_tensor)()) is not None
            and tensor.requires_grad
            for number in self.untrained
        )

    def without_layer(self, layers: Layers) -> dict[int, tuple[str, nn.Module | None]]:
        """Return the path in its model, and the model, of parameters of modules without layers."""
        first_layers = layers.first_layers()
        return {
            number: (entry.path, entry.model() if entry.model else None)
            for number, entry in enumerate(self._entries)
            if not any(owner in first_layers for owner in entry.owners)
        }

    def trainable(self) -> list[tuple[int, Tensor]]:
        """Return all parameters that are alive and want a gradient."""
        alive = (
            (number, entry.tensor() if entry.tensor else None)
            for number, entry in enumerate(self._entries)
        )
        return [(number, p) for number, p in alive if p is not None and p.requires_grad]

    def alive(self, numbers: Iterable[int]) -> list[tuple[int, Tensor]]:
        """Return those of these parameters that are alive."""
        found = ((number, self._entries[number].tensor) for number in numbers)
        alive = ((number, ref() if ref else None) for number, ref in found)
        return [(number, tensor) for number, tensor in alive if tensor is not None]

    def of_roots(self, roots: Container[int]) -> set[int]:
        """Return the parameters of these root models."""
        return {number for number, entry in enumerate(self._entries) if entry.root in roots}

    def without_optimizer(self) -> list[int]:
        """Return those that want a gradient in a model of which optimizers hold others only."""
        roots = {self._entries[number].root for number in self.optimized}
        wanted = (number for number, _ in self.trainable() if number not in self.optimized)
        return [number for number in wanted if self._entries[number].root in roots]

    def rows(self, layers: Layers) -> list[dict[str, Any]]:
        """Return the rows of ``parameters.parquet``."""
        names, first_layers, rows = self._names(layers), layers.first_layers(), []
        for number, entry in enumerate(self._entries):
            tensor = entry.tensor() if entry.tensor else None
            is_lazy = tensor is not None and nn.parameter.is_lazy(tensor)
            if tensor is not None and not is_lazy and not entry.is_piece:
                entry.shape, entry.num_elements = list(tensor.shape), tensor.numel()
            used_by = [first_layers[owner] for owner in entry.owners if owner in first_layers]
            wants_gradient = tensor is None or tensor.requires_grad
            is_trained = wants_gradient and (not self.optimized or number in self.optimized)
            (self.untrained.discard if is_trained else self.untrained.add)(number)
            rows.append(
                {
                    "parameter": number,
                    "name": names[number],
                    "layer": min(used_by, default=None),
                    "shape": entry.shape,
                    "num_elements": entry.num_elements,
                    "trained": is_trained,
                    "placement": "replicated" if entry.num_parts == 1 else "sharded",
                }
            )
        return rows

    def split(self, layers: Layers) -> dict[str, tuple[int, int]]:
        """Return in how many parts the ranks hold parameters, and the elements here, by name."""
        names = self._names(layers)
        return {
            name: (entry.num_parts, entry.num_here)
            for name, entry in zip(names, self._entries, strict=True)
            if entry.num_parts > 1
        }

    def _names(self, layers: Layers) -> list[str]:
        prefixes = layers.prefixes()
        return [("" if e.root is None else prefixes[e.root]) + e.path for e in self._entries]

    def read(self, tensors: Iterable[tuple[int, Tensor]], rows: ParameterRows) -> None:
        """Read gradients and norms of parameters into the rows of the step, once each."""
        found = rows.norm
        new = [pair for pair in tensors if found.setdefault(pair[0], None) is None]
        on_device: list[tuple[int, Tensor, Tensor | None]] = []
        measured, gradients = parameters([parameter for _, parameter in new])
        for (number, parameter), norm, row in zip(new, measured, gradients, strict=True):
            rows.gradient[number] = row
            if norm is not None:
                found[number] = norm
                continue
            try:
                values, gradient = plain(parameter), parameter.grad
                if not values.numel() and self._entries[number].num_parts > 1:
                    found[number] = 0.0  # all of it is on other ranks
                    continue
                if not values.is_cpu:
                    on_device.append(
                        (number, values, None if gradient is None else plain(gradient))
                    )
                    continue
                found[number] = host_norm(real_values(values))
                if gradient is not None:
                    rows.gradient[number] = gradient_row(gradient, count_zeros=False)
            except Exception as error:  # the training must continue whatever a parameter is
                self._on_problem(f"parameter {self._entries[number].path}: {said(error)}")
        if on_device:
            self._read_device(on_device, rows)

    def _read_device(
        self, tensors: Sequence[tuple[int, Tensor, Tensor | None]], rows: ParameterRows
    ) -> None:
        """The same for parameters on devices and their gradients, in few launches."""
        for (number, *_), norm in zip(tensors, norms([p for _, p, _ in tensors]), strict=True):
            rows.norm[number] = norm
        given = [(number, gradient) for number, _, gradient in tensors if gradient is not None]
        for (number, _), row in zip(given, gradient_rows([g for _, g in given]), strict=True):
            rows.gradient[number] = row

    def note_before_clipping(self, gradients: Sequence[Tensor], rows: ParameterRows) -> list[int]:
        """Note the norms of gradients that are about to be clipped for the first time.

        Returns:
            The parameters that they belong to.
        """
        by_gradient = {
            id(parameter.grad): number
            for number, parameter in self.trainable()
            if parameter.grad is not None
        }
        pairs = [(by_gradient[id(g)], g) for g in gradients if id(g) in by_gradient]
        noted = rows.norm_before_clipping
        new = [(number, g) for number, g in pairs if noted.get(number) is None]
        for (number, _), norm in zip(new, norms([g for _, g in new]), strict=True):
            noted[number] = norm
        return [number for number, _ in new]
