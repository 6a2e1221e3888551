"""The losses of a surface by their places, shared through a file by all that evaluate it.

Any number of processes, on any machines that share the file, evaluate one surface together: each
takes groups of points that no other has, which a lock in the file says. The lock of a process that
dies goes with it, and another does its group. What is done stays for a later run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analyzer.probes.landscape.methods import Method
from analyzer.probes.landscape.weights import Point

__all__ = ["Ledger", "PartialSurfaceError", "fingerprint"]

Floats = NDArray[np.float64]
Places = Sequence[tuple[int, int]]
_HEADER = 1024
# No computation gives a NaN of these bits.
_TO_DO = np.array([0x7FF8_DEAD_BEEF_0001], dtype="<u8")
# Bytes whose locks say: who looks at the file first, who is at work, and which group is taken.
_FIRST_LOOK, _AT_WORK, _GROUPS = 0, 1, 2
_POLL_SECONDS = 0.002


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
    process left unfinished is evaluated as a whole again: the values depend neither on
    interruptions nor on how many processes there are.

    Args:
        axes: Coordinates of the two axes.
        path: Where to keep what is done, and to share it; None for nowhere.
        identity: The `fingerprint` of what is evaluated.
        is_late: Asked before every group; once true, nothing more is evaluated.
        on_progress: Called with the number of points done so far.
    """

    def __init__(
        self,
        axes: tuple[Floats, Floats],
        path: Path | None,
        identity: str,
        is_late: Callable[[], bool] = lambda: False,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        self._axes, self._path, self._identity = axes, path, identity
        self.is_late, self._on_progress = is_late, on_progress
        self._shape = (len(axes[0]), len(axes[1]))
        self.values = np.full(self._shape, np.nan)
        self.done = np.zeros(self._shape, dtype=bool)
        self._file: int | None = None
        self._is_checked = True

    # --- the file ------------------------------------------------------------------------------

    def begin(self, choose: Callable[[], str]) -> str:
        """Return the name of the method; of several processes the first chooses for all.

        Raises:
            PartialSurfaceError: If the file holds something else.
        """
        if self._path is None:
            return choose()
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        self._lock(_FIRST_LOOK, waits=True)
        try:
            is_alone = self._lock(_AT_WORK)
            if os.pread(self._file, _HEADER, 0) in (b"", bytes(_HEADER)):  # new, or left unfinished
                name = choose()
                self._make(name)
            else:
                name = self._name_in_file()
            self._load()
            # Others that are at work have checked what they found.
            self._is_checked = not (is_alone and self.done.any())
            self._lock(_AT_WORK, is_shared=True, waits=True)
        finally:
            self._unlock(_FIRST_LOOK)
        return name

    def _make(self, name: str) -> None:
        said = {"identity": self._identity, "method": name, "shape": self._shape}
        header = json.dumps(said).encode().ljust(_HEADER - 1) + b"\n"
        points = np.repeat(_TO_DO, self.values.size).tobytes()
        assert self._file is not None
        # The header comes last: without it the file holds nothing.
        os.pwrite(self._file, bytes(_HEADER) + points, 0)
        os.fsync(self._file)
        os.pwrite(self._file, header, 0)

    def _name_in_file(self) -> str:
        assert self._path is not None
        assert self._file is not None
        size = _HEADER + 8 * self.values.size
        try:
            said = json.loads(os.pread(self._file, _HEADER, 0))
            identity, name = said["identity"], str(said["method"])
        except (ValueError, KeyError, TypeError) as error:
            raise PartialSurfaceError(
                f"{self._path.name!r} holds no partial surface ({error}), expected one that this "
                "function wrote; name another file, or delete it"
            ) from error
        if identity != self._identity or os.fstat(self._file).st_size != size:
            raise PartialSurfaceError(
                f"{self._path.name!r} holds points of another surface, expected the same weights, "
                "directions, data and grid; name another file, or delete it to start over"
            )
        return name

    def _load(self) -> None:
        """See what an earlier run, or others, have done."""
        assert self._file is not None
        bits = np.frombuffer(os.pread(self._file, 8 * self.values.size, _HEADER), dtype="<u8")
        done = (bits != _TO_DO[0]).reshape(self._shape)
        values = bits.view("<f8").reshape(self._shape)
        self.values[done], self.done = values[done], done

    def _see(self, group: Places) -> None:
        """See whether others have done a group."""
        if self._file is not None:
            for place in group:
                bits = np.frombuffer(os.pread(self._file, 8, self._offset(place)), dtype="<u8")
                if bits[0] != _TO_DO[0]:
                    self.values[place], self.done[place] = bits.view("<f8")[0], True

    def _store(self, group: Places) -> None:
        if self._file is not None:
            for place in group:
                value = self.values[place]
                # NaN has one form here, so that none reads as what is still to be done.
                text = np.array(np.nan if np.isnan(value) else value, dtype="<f8").tobytes()
                os.pwrite(self._file, text, self._offset(place))

    def _offset(self, place: tuple[int, int]) -> int:
        return _HEADER + 8 * (place[0] * self._shape[1] + place[1])

    def _lock(self, place: int, *, is_shared: bool = False, waits: bool = False) -> bool:
        """Lock a byte of the file; return False where another process has it."""
        try:
            import fcntl
        except ImportError:  # not on Windows, where each process is on its own
            return True
        kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
        assert self._file is not None
        try:
            fcntl.lockf(self._file, kind | (0 if waits else fcntl.LOCK_NB), 1, place)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # a file system without locks: each process is on its own
            return True
        return True

    def _unlock(self, place: int) -> None:
        with contextlib.suppress(ImportError):
            import fcntl

            assert self._file is not None
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)

    def close(self) -> None:
        """Leave the file as it is, for others and for a later run."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None

    # --- the points ----------------------------------------------------------------------------

    def evaluate(self, method: Method, places: Places) -> Floats:
        """Return the losses at some places; of the first ones only if time is up."""
        starts = range(0, len(places), method.group)
        waiting = [places[start : start + method.group] for start in starts]
        while waiting and not self.is_late():
            # What is left after one round, others are at: they may die.
            left = [group for group in waiting if not self._settled(method, group)]
            if len(left) == len(waiting):
                time.sleep(_POLL_SECONDS)
            waiting = left
        found, known = (
            part[tuple(np.array(places, dtype=np.intp).reshape(-1, 2).T)]
            for part in (self.values, self.done)
        )
        return found if known.all() else found[: int(np.argmin(known))]

    def _settled(self, method: Method, group: Places) -> bool:
        """Whether a group is done; it is done here, unless another process is at it."""
        if not self._is_done(group):
            with self._taken(group) as is_ours:
                if not is_ours or self.is_late():
                    return False
                if not self._is_done(group):  # by one that was at it a moment ago
                    self.values[_index(group)] = method.losses([self._point(p) for p in group])
                    self.done[_index(group)] = True
                    self._store(group)
                    self._on_progress(int(self.done.sum()))
                    return True
        self._check(method, group)
        return True

    def _is_done(self, group: Places) -> bool:
        if self.done[_index(group)].all():
            return True
        self._see(group)
        return bool(self.done[_index(group)].all())

    @contextlib.contextmanager
    def _taken(self, group: Places) -> Iterator[bool]:
        """Take a group for this process; give whether no other has it."""
        if self._file is None:
            yield True
            return
        place = _GROUPS + group[0][0] * self._shape[1] + group[0][1]
        is_ours = self._lock(place)
        try:
            yield is_ours
        finally:
            if is_ours:
                self._unlock(place)

    def _point(self, place: tuple[int, int]) -> Point:
        return float(self._axes[0][place[0]]), float(self._axes[1][place[1]])

    def _check(self, method: Method, group: Places) -> None:
        """Evaluate the first group of an earlier run again: the loss itself has no fingerprint."""
        if self._is_checked:
            return
        self._is_checked = True
        again = np.array(method.losses([self._point(place) for place in group]))
        stored = self.values[_index(group)]
        if not np.allclose(again, stored, rtol=1e-5, atol=1e-12, equal_nan=True):
            raise PartialSurfaceError(
                f"the loss at {self._point(group[0])} is {again[0]:.9g}, but the partial surface "
                f"holds {stored[0]:.9g}; it was made with another loss: delete the file"
            )


def _index(places: Places) -> tuple[NDArray[np.intp], ...]:
    return tuple(np.array(places, dtype=np.intp).T)
