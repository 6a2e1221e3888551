"""Weights of the recorded models at chosen steps, copied without stopping the training."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from analyzer.options import RecordOptions
from analyzer.recording.layers import Layers
from analyzer.recording.names import clean_path, unwrapped
from analyzer.recording.plain import UnreadableError, can_pin, is_sharded, plain

__all__ = ["Checkpoints", "free_memory", "is_small"]

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


class Checkpoints:
    """Saves the weights after the first and the last step, and after those of the options.

    Names are those of ``state_dict()`` without the parts that wrappers add, prefixed as the layers
    are where there are several roots.

    Args:
        options: After which steps.
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

    def pass_boundary(self, layers: Layers, step: int) -> None:
        """Save the weights after this step, if it is one of those."""
        if self._options.saves_weights(step):
            self.save(layers, step)

    def save(self, layers: Layers, step: int) -> None:
        """Copy the weights of every root as they are now; a second call for a step does nothing."""
        if step == self._saved_step or not layers.roots:
            return
        is_first, self._saved_step = self._saved_step is None, step
        state = _state(layers)
        if isinstance(state, str):
            self._on_problem(state)
            return
        size, free = _num_bytes(state), free_memory(torch.device("cpu"))
        if not state or (free is not None and size > _LARGEST_SHARE * free):
            self._on_problem(
                f"weights after step {step} are not saved: the model was gone, or a copy takes "
                "more than a quarter of the free memory"
            )
            return
        if is_first and size > _LARGE:
            every = self._options.checkpoint_every
            when = "" if every is None else f", and every {every} steps"
            self._warn(
                f"each checkpoint takes {size / 2**20:,.0f} MiB: weights are saved after the first "
                f"and the last step{when}"
            )
        self._write(step, _writing(state, step))


def _state(layers: Layers) -> dict[str, Tensor] | str:
    """The state of every root that is alive, or a sentence why it is not saved."""
    state: dict[str, Tensor] = {}
    for prefix, reference in zip(layers.prefixes(), layers.roots, strict=True):
        root = reference()
        if root is not None:
            for name, value in unwrapped(root).state_dict().items():
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
        save_file(copies, path, metadata={"step": str(step), "moment": "after the update"})

    return save


def _copy(value: Tensor) -> Tensor:
    """A contiguous copy on the host; from a device it arrives later."""
    value = value.detach()
    if value.device.type == "cpu":
        return value.clone(memory_format=torch.contiguous_format)
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=can_pin(value.device))
    return copy.copy_(value, non_blocking=True)
