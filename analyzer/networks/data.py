"""Data for the built-in loop: digits, Gaussian classes, CIFAR-10 from a folder; batches."""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyzer.errors import AnalyzerError

__all__ = ["Batches", "Dataset", "batches", "dataset", "synthetic"]

_TEST_FRACTION = 0.2
_FOLDER = "cifar-10-batches-py"
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = "test_batch"


@dataclass(frozen=True)
class Dataset:
    """Images and their classes, standardized with the mean and deviation of the training part.

    Attributes:
        name: The name it was asked for by, without a folder.
        train_inputs: float32 ``[samples, channels, height, width]``; test inputs likewise.
        train_targets: int64 ``[samples]``; test targets likewise.
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    num_classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input: channels, height, width."""
        return tuple(self.train_inputs.shape[1:])


@dataclass(eq=False)
class Batches(Iterator[tuple[Tensor, Tensor]]):
    """Shuffled batches of the training part, drawn with a private generator.

    Every epoch is another permutation. All batches have the same size; what is left over at the end
    of an epoch is not used in it.

    Attributes:
        epoch: Epoch of the batch given last, from 0.
    """

    inputs: Tensor
    targets: Tensor
    batch_size: int
    seed: int
    epoch: int = 0

    def __post_init__(self) -> None:
        self._pairs = self._drawn()

    def __next__(self) -> tuple[Tensor, Tensor]:
        return next(self._pairs)

    def _drawn(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the batches of one epoch after the other."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            order = torch.randperm(len(self.inputs), generator=generator)
            # Moved once an epoch, so that a step waits for nothing.
            order = order.to(self.inputs.device)
            for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
                chosen = order[start : start + self.batch_size]
                yield self.inputs[chosen], self.targets[chosen]
            self.epoch += 1


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Batches:
    """Return the training part in shuffled batches, without end.

    It is moved to the device once; the global random state is not touched.

    Raises:
        AnalyzerError: If the training part does not fill one batch.
    """
    samples = len(dataset.train_inputs)
    if not 1 <= batch_size <= samples:
        raise AnalyzerError(
            f"batch size {batch_size} does not fit the {samples} training samples of "
            f"{dataset.name!r}; choose 1 to {samples}"
        )
    inputs, targets = dataset.train_inputs.to(device), dataset.train_targets.to(device)
    return Batches(inputs, targets, batch_size, seed)


def dataset(name: str, *, seed: int = 0) -> Dataset:
    """Return a data set by name.

    Args:
        name: ``"digits"``: 1797 images of 1x8x8, 10 classes, embedded in scikit-learn, a fifth kept
            for testing, the same fifth for every seed. ``"synthetic"`` or ``"synthetic:CxHxW"``: 10
            Gaussian classes, by default of 3x8x8. ``"cifar10:DIR"``: the Python version of CIFAR-10
            below DIR.
        seed: Of ``synthetic``; without effect on the others.

    Raises:
        AnalyzerError: If the name is unknown or the files are missing or damaged.
    """
    kind, _, argument = name.partition(":")
    if name == "digits":
        return _digits()
    if kind == "synthetic":
        return synthetic(_shape(name, argument), seed=seed)
    if kind == "cifar10" and argument:
        train, test = cifar10_arrays(Path(argument))
        return _standardized("cifar10", train, test, 10)
    raise AnalyzerError(
        f"data {name!r} is unknown; expected digits, synthetic, synthetic:CxHxW or cifar10:DIR "
        "with DIR the folder that holds cifar-10-batches-py"
    )


def synthetic(
    shape: tuple[int, ...] = (3, 8, 8),
    *,
    num_classes: int = 10,
    samples: int = 2000,
    separation: float = 4.0,
    seed: int = 0,
) -> Dataset:
    """Draw Gaussian classes.

    ``x = separation · u_c + ε`` with ``ε ~ N(0, 1)`` and random unit vectors ``u_c``. Two class
    means lie about ``√2 · separation`` standard deviations apart, whatever the shape. Classes are
    equally likely; a fifth of the samples is for testing.
    """
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(num_classes, *shape, generator=generator)
    means *= separation / means.flatten(1).norm(dim=1).view(-1, *[1] * len(shape))
    targets = torch.randint(num_classes, (samples,), generator=generator)
    inputs = means[targets] + torch.randn(samples, *shape, generator=generator)
    return _split("synthetic", inputs, targets, num_classes)


def _digits() -> Dataset:
    """Return scikit-learn's digits with a fixed split."""
    # Here, not above: scikit-learn takes longer to import than most of what runs without it.
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    return _split("digits", inputs[order], torch.tensor(classes)[order], 10)


def _split(name: str, inputs: Tensor, targets: Tensor, num_classes: int) -> Dataset:
    """Keep the last fifth for testing."""
    cut = len(inputs) - int(len(inputs) * _TEST_FRACTION)
    train, test = (inputs[:cut], targets[:cut]), (inputs[cut:], targets[cut:])
    return _standardized(name, train, test, num_classes)


def _standardized(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], num_classes: int
) -> Dataset:
    """Give every channel mean 0 and deviation 1 over the training part."""
    inputs = train[0].float()
    axes = [axis for axis in range(inputs.dim()) if axis != 1]
    deviation, mean = torch.std_mean(inputs, dim=axes, keepdim=True)
    return Dataset(
        name,
        inputs.sub_(mean).div_(deviation),
        train[1].long(),
        test[0].float().sub_(mean).div_(deviation),
        test[1].long(),
        num_classes,
    )


def _shape(name: str, argument: str) -> tuple[int, ...]:
    """Read ``CxHxW``; nothing means 3x8x8."""
    sizes = (argument or "3x8x8").split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
        raise AnalyzerError(
            f"data {name!r}: {argument!r} is not a shape; expected CxHxW as in 3x8x8"
        )
    return tuple(int(size) for size in sizes)


def _empty(*_: Any) -> Any:
    """The array that a pickle makes before it fills it, of whatever size it asks for."""
    return np.empty(0, np.uint8)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",  # named by a pickle, and never called
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty,
    ("numpy._core.multiarray", "_reconstruct"): _empty,
    # With it Python 3 writes bytes into old pickles; that of strings does nothing else.
    ("_codecs", "encode"): str.encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that makes arrays and plain containers, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few functions that arrays need."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return _ALLOWED[module, name]


def cifar10_arrays(folder: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Read training and test part of CIFAR-10, from ``cifar-10-batches-py`` or what holds it.

    Each is a pair of images, uint8 ``[samples, 3, 32, 32]``, and classes, int64 ``[samples]``.

    Raises:
        AnalyzerError: If files are missing, are damaged, or contain anything but arrays.
    """
    inner = folder / _FOLDER
    found = inner if inner.is_dir() else folder
    missing = [name for name in (*_TRAIN, _TEST) if not (found / name).is_file()]
    if missing:
        raise AnalyzerError(
            f"CIFAR-10 folder '{folder}' lacks {', '.join(missing)}; looked for "
            f"{_TRAIN[0]} to {_TRAIN[-1][-1]} and {_TEST} in it and in its {_FOLDER}. "
            "Unpack the Python version of CIFAR-10 there."
        )
    images, classes = zip(*[_batch(found / name) for name in _TRAIN], strict=True)
    return (torch.cat(images), torch.cat(classes)), _batch(found / _TEST)


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
