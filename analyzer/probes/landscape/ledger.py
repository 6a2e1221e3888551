"""The points of a surface that are done, kept in a file so that a killed run can be resumed."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analyzer.probes.landscape.evaluation import Method, Point

__all__ = ["Ledger", "PartialSurfaceError", "fingerprint"]

Places = Sequence[tuple[int, int]]
_SAVE_EVERY = 0.5  # seconds


class PartialSurfaceError(ValueError):
    """A file that should hold a part of this surface holds something else."""


def fingerprint(parts: Iterable[Any]) -> str:
    """Return a hash of tensors, arrays, numbers and names, nested or not, in hexadecimal digits."""
    digest = hashlib.sha256()
    _absorb(digest, list(parts))
    return digest.hexdigest()


def _absorb(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{plain.dtype} {list(plain.shape)}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype} {value.shape}".encode() + value.tobytes())
    elif isinstance(value, dict):
        _absorb(digest, list(value.items()))
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)}(".encode())
        for item in value:
            _absorb(digest, item)
    else:
        digest.update(f"{type(value).__name__} {value!r}".encode())


class Ledger:
    """Losses by their places on the grid, evaluated group by group.

    Points are evaluated in the groups in which they are first requested, and a group that a killed
    run left unfinished is evaluated as a whole again: the values do not depend on interruptions.

    Args:
        axes: Coordinates of the two axes.
        path: Where to keep what is done; None for nowhere.
        identity: The `fingerprint` of what is evaluated.
        is_late: Asked before every group; once true, nothing more is evaluated.
        on_progress: Called with the number of points done so far.
    """

    def __init__(
        self,
        axes: tuple[NDArray[np.float64], NDArray[np.float64]],
        path: Path | None,
        identity: str,
        is_late: Callable[[], bool] = lambda: False,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        self._axes, self._path, self._identity = axes, path, identity
        self.is_late, self._on_progress = is_late, on_progress
        shape = (len(axes[0]), len(axes[1]))
        self.values = np.full(shape, np.nan)
        self.done = np.zeros(shape, dtype=bool)
        self.method_name = ""
        self._saved_at = time.monotonic()
        self._is_checked = True
        if path is not None and path.exists():
            self._load(path)

    def _load(self, path: Path) -> None:
        try:
            with np.load(path) as stored:
                identity, name = str(stored["identity"]), str(stored["method"])
                values, done = stored["values"], stored["done"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise PartialSurfaceError(
                f"{path.name!r} holds no partial surface ({error}), expected one that this function"
                " wrote; name another file, or delete it"
            ) from error
        if identity != self._identity:
            raise PartialSurfaceError(
                f"{path.name!r} holds points of another surface, expected the same weights, "
                "directions, data and grid; name another file, or delete it to start over"
            )
        self.values, self.done, self.method_name = values, done, name
        self._is_checked = not done.any()

    def evaluate(self, method: Method, places: Places) -> NDArray[np.float64]:
        """Return the losses at some places; of the first ones only if time is up."""
        for start in range(0, len(places), method.group):
            group = places[start : start + method.group]
            index = tuple(np.array(group, dtype=np.intp).T)
            if self.done[index].all():
                self._check(method, group)
                continue
            if self.is_late():
                self.save()
                return self.values[tuple(np.array(places[:start], dtype=np.intp).reshape(-1, 2).T)]
            self.values[index] = method.losses([self._point(place) for place in group])
            self.done[index] = True
            self._on_progress(int(self.done.sum()))
            self._save_now_and_then()
        found: NDArray[np.float64] = self.values[tuple(np.array(places, dtype=np.intp).T)]
        return found

    def _point(self, place: tuple[int, int]) -> Point:
        return float(self._axes[0][place[0]]), float(self._axes[1][place[1]])

    def _check(self, method: Method, group: Places) -> None:
        """Evaluate the first stored group again: the loss itself has no fingerprint."""
        if self._is_checked:
            return
        self._is_checked = True
        again = np.array(method.losses([self._point(place) for place in group]))
        stored = self.values[tuple(np.array(group, dtype=np.intp).T)]
        if not np.allclose(again, stored, rtol=1e-5, atol=1e-12, equal_nan=True):
            raise PartialSurfaceError(
                f"the loss at {self._point(group[0])} is {again[0]:.9g}, but the partial surface "
                f"holds {stored[0]:.9g}; it was made with another loss: delete the file"
            )

    def _save_now_and_then(self) -> None:
        if time.monotonic() - self._saved_at > _SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write what is done, whole or not at all."""
        self._saved_at = time.monotonic()
        if self._path is None:
            return
        new = self._path.with_name(f".{self._path.name}.{os.getpid()}.new")
        with new.open("wb") as file:
            np.savez(
                file,
                identity=self._identity,
                method=self.method_name,
                values=self.values,
                done=self.done,
            )
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
