"""CIFAR-10's Python files, read without running what a pickle may contain."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyzer.errors import AnalyzerError

__all__ = ["cifar10_arrays"]

_FOLDER = "cifar-10-batches-py"
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = ("test_batch",)
_RECONSTRUCT: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]


def _encoded(text: str, encoding: str) -> bytes:
    """Stand for ``_codecs.encode``, with which Python 3 writes bytes into old pickles."""
    return text.encode(encoding)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("_codecs", "encode"): _encoded,
}


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that makes arrays and plain containers, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few functions that arrays need."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return _ALLOWED[module, name]


def cifar10_arrays(folder: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Read training and test part of CIFAR-10.

    Args:
        folder: The folder ``cifar-10-batches-py``, or the one that holds it.

    Returns:
        Two pairs of images, uint8 ``[samples, 3, 32, 32]``, and classes, int64 ``[samples]``.

    Raises:
        AnalyzerError: If files are missing, are damaged, or contain anything but arrays.
    """
    inner = folder / _FOLDER
    found = inner if inner.is_dir() else folder
    missing = [name for name in (*_TRAIN, *_TEST) if not (found / name).is_file()]
    if missing:
        raise AnalyzerError(
            f"CIFAR-10 folder '{folder}' lacks {', '.join(missing)}; looked for "
            f"{_TRAIN[0]} to {_TRAIN[-1][-1]} and {_TEST[0]} in it and in its {_FOLDER}. "
            "Unpack the Python version of CIFAR-10 there."
        )
    return _joined(found, _TRAIN), _joined(found, _TEST)


def _joined(folder: Path, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Read files one after the other into one pair."""
    pairs = [_batch(folder / name) for name in names]
    images, classes = zip(*pairs, strict=True)
    return torch.cat(images), torch.cat(classes)


def _batch(path: Path) -> tuple[Tensor, Tensor]:
    """Read one file."""
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
        images = np.asarray(content[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        classes = np.asarray(content[b"labels"], dtype=np.int64).reshape(len(images))
    # A damaged pickle may fail in almost any way; each of them means the same to the user.
    except Exception as error:
        raise AnalyzerError(
            f"'{path}' is not a CIFAR-10 batch ({error}); expected a pickled dict with data "
            "[samples, 3072] and labels. Unpack the archive again."
        ) from error
    return torch.from_numpy(images.copy()), torch.from_numpy(classes)
