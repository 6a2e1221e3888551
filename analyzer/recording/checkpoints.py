"""Weights of the recorded models at chosen steps, copied without stopping the training."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from analyzer.errors import AnalyzerError
from analyzer.options import RecordOptions
from analyzer.recording.layers import Layers
from analyzer.recording.names import clean_path, unwrapped
from analyzer.recording.plain import UnreadableError, can_pin, is_sharded, plain

__all__ = ["Checkpoints", "FirstWeights", "free_memory", "is_small"]

_LARGEST_SHARE = 0.25
# Larger ones are announced.
_LARGE = 100 * 2**20
_POLL_SECONDS = 0.0005


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device; None where nobody can tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def is_small(model: nn.Module) -> bool:
    """Whether a model takes less than a quarter of the memory that is free on its devices.

    Such a model may be held until the end of the recording, so that the weights after the last
    step can be saved even where the script's own function has returned by then.
    """
    sizes: dict[torch.device, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if nn.parameter.is_lazy(tensor):
            return False
        sizes[tensor.device] = sizes.get(tensor.device, 0) + tensor.numel() * tensor.element_size()
    frees = {device: free_memory(device) for device in sizes}
    return all(
        free is None or sizes[device] <= _LARGEST_SHARE * free for device, free in frees.items()
    )


class FirstWeights:
    """The weights with which a training computed its first gradients, until its first update ended.

    What is measured or saved of them waits until then: no backward pass is to come any more, and
    the number of the step is known.

    Args:
        on_problem: Called with a sentence where there is no memory for a copy.

    Attributes:
        is_taken: Whether they are held.
    """

    def __init__(self, on_problem: Callable[[str], None]) -> None:
        self.is_taken = False
        self._on_problem = on_problem
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def note_buffers(self, model: nn.Module) -> None:
        """A forward pass begins, which may write to them."""
        self._copy(model.buffers())

    def take(self, roots: Sequence[nn.Module]) -> None:
        """The first backward pass begins."""
        self.is_taken = True
        for root in roots:
            if is_small(root):
                known = self._copies
                more = (buffer for buffer in root.buffers() if id(buffer) not in known)
                self._copy((*root.parameters(), *more))
            else:
                self._on_problem(
                    f"weights of {type(root).__name__} before the first step: a copy takes more "
                    "than a quarter of the free memory"
                )

    def _copy(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if tensor.layout is torch.strided and not is_sharded(tensor):
                copy = tensor.detach().clone(memory_format=torch.contiguous_format)
                self._copies[id(tensor)] = tensor, copy

    def of(self, tensor: Tensor) -> Tensor | None:
        """Return what a tensor was then; None where it is not known."""
        known = self._copies.get(id(tensor))
        return None if known is None else known[1]

    @contextmanager
    def put_back(self, model: nn.Module) -> Iterator[None]:
        """Give a model these weights for a while; afterwards it has its own, bit for bit."""
        tensors = [*model.parameters(), *model.buffers()]
        if any(self.of(tensor) is None for tensor in model.parameters()):
            raise AnalyzerError("there is no copy of the weights before the first step")
        # Not detach(): it would share the version counter with the weights of the program.
        pairs = [(t.data, copy) for t in tensors if (copy := self.of(t)) is not None]
        kept = [data.clone() for data, _ in pairs]
        try:
            for data, copy in pairs:
                data.copy_(copy)
            yield
        finally:
            for (data, _), own in zip(pairs, kept, strict=True):
                data.copy_(own)

    def clear(self) -> None:
        """Free the copies."""
        self.is_taken = False
        self._copies.clear()


class Checkpoints:
    """Saves the weights before the first step, those of the options, and after the last.

    That of step k has the weights with which the gradients of step k were computed.

    Names are those of ``state_dict()`` without the parts that wrappers add, prefixed as the layers
    are where there are several roots.

    Args:
        options: Before which steps.
        write: Receives a step, and what writes its weights to a path later.
        warn: Receives the size of checkpoints that are large, before the first of them.
        on_problem: Receives why weights are not saved.
    """

    def __init__(
        self,
        options: RecordOptions,
        *,
        write: Callable[[int, Callable[[Path], object]], None],
        warn: Callable[[str], None],
        on_problem: Callable[[str], None],
    ) -> None:
        self._options = options
        self._write, self._warn, self._on_problem = write, warn, on_problem
        self._saved_step: int | None = None

    def pass_boundary(self, layers: Layers, step: int, first: FirstWeights | None) -> None:
        """A step has ended: save the weights of the next, and ``first`` those of this, if due."""
        if first is not None and self._options.saves_weights(step):
            self.save(layers, step, first)
        if self._options.saves_weights(step + 1):
            self.save(layers, step + 1)

    def save(self, layers: Layers, step: int, first: FirstWeights | None = None) -> None:
        """Copy the weights of every root as they are now; a second call for a step does nothing."""
        if step == self._saved_step or not layers.roots:
            return
        is_first, self._saved_step = self._saved_step is None, step
        state = _state(layers, first)
        if isinstance(state, str):
            self._on_problem(state)
            return
        size, free = _num_bytes(state), free_memory(torch.device("cpu"))
        if not state or (free is not None and size > _LARGEST_SHARE * free):
            self._on_problem(
                f"weights of step {step} are not saved: the model was gone, or a copy takes "
                "more than a quarter of the free memory"
            )
            return
        if is_first and size > _LARGE:
            every = self._options.checkpoint_every
            when = "" if every is None else f", before every {every}th step"
            self._warn(
                f"each checkpoint takes {size / 2**20:,.0f} MiB: weights are saved before the "
                f"first step{when} and after the last"
            )
        self._write(step, _writing(state, step))


def _state(layers: Layers, first: FirstWeights | None) -> dict[str, Tensor] | str:
    """The state of every root that is alive, or a sentence why it is not saved."""
    state: dict[str, Tensor] = {}
    for prefix, reference in zip(layers.prefixes(), layers.roots, strict=True):
        root = reference()
        if root is not None:
            for name, now in unwrapped(root).state_dict(keep_vars=True).items():
                then = None if first is None else first.of(now)
                value = now if then is None else then
                if not isinstance(value, Tensor) or value.layout is not torch.strided:
                    continue
                if is_sharded(value):
                    return f"weights are not saved: {clean_path(name)} is sharded over the ranks"
                try:
                    state[prefix + clean_path(name)] = plain(value)
                except UnreadableError as error:
                    return f"weights are not saved: {clean_path(name)}: {error}"
    return state


def _num_bytes(state: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in state.values())


def _writing(state: Mapping[str, Tensor], step: int) -> Callable[[Path], object]:
    """Copy a state now; return what writes it."""
    copies = {name: _copy(value) for name, value in state.items()}
    events: list[Any] = []
    for device in {value.device for value in state.values() if value.device.type != "cpu"}:
        event = torch.Event(device=device)
        event.record()
        events.append(event)

    def save(path: Path) -> None:
        for event in events:
            while not event.query():
                time.sleep(_POLL_SECONDS)
        save_file(copies, path, metadata={"step": str(step), "moment": "before the update"})

    return save


def _copy(value: Tensor) -> Tensor:
    """A contiguous copy on the host; from a device it arrives later."""
    value = value.detach()
    if value.device.type == "cpu":
        return value.clone(memory_format=torch.contiguous_format)
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=can_pin(value.device))
    return copy.copy_(value, non_blocking=True)
