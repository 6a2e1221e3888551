"""How far each update moves the weights, measured from the weights themselves."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from analyzer.recording.parameters import ParameterRow, norms

__all__ = ["UpdateMeter", "free_memory"]

# A copy of the trained parameters may take this part of the free memory at the most.
_LARGEST_SHARE = 0.25

Held = Sequence[tuple[int, Tensor]]


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


class UpdateMeter:
    """Copies weights before an update and measures the difference after it.

    Args:
        on_problem: Called once, with the reason, when there is no memory for a copy.
    """

    def __init__(self, on_problem: Callable[[str], None]) -> None:
        self._on_problem = on_problem
        self._is_off = False
        self._before: dict[int, tuple[list[int], list[Tensor], list[Tensor]]] = {}

    def begin(self, key: int, held: Held) -> None:
        """Copy the parameters that an update is about to move; ``key`` names the update."""
        trained = [(number, p.detach()) for number, p in held if p.requires_grad]
        if not trained or self._is_off or not self._fits([p for _, p in trained]):
            return
        copies = [parameter.clone() for _, parameter in trained]
        self._before[key] = ([n for n, _ in trained], copies, [p for _, p in trained])

    def _fits(self, parameters: Sequence[Tensor]) -> bool:
        device = parameters[0].device
        needed = sum(p.numel() * p.element_size() for p in parameters if p.device == device)
        free = free_memory(device)
        if free is not None and needed > _LARGEST_SHARE * free:
            self._is_off = True
            self._on_problem(
                f"updates are not measured: a copy of the trained parameters takes "
                f"{needed / 2**20:.0f} MiB, more than a quarter of the free "
                f"{free / 2**20:.0f} MiB"
            )
        return not self._is_off

    def finish(self, key: int, rows: dict[int, ParameterRow]) -> None:
        """Measure ``‖θ_after − θ_before‖₂`` after that update, and free the copies."""
        if key not in self._before:
            return
        numbers, copies, parameters = self._before.pop(key)
        for copy, parameter in zip(copies, parameters, strict=True):
            copy.sub_(parameter.detach())
        for number, norm in zip(numbers, norms(copies), strict=True):
            if number in rows:
                rows[number].update_norm = norm

    def clear(self) -> None:
        """Free every copy."""
        self._before.clear()
