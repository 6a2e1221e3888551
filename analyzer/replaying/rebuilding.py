"""The model and the first batch of a recorded training of a built-in net or a model file."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from analyzer.errors import AnalyzerError
from analyzer.recording.probing import Call, Held
from analyzer.script import run_program
from analyzer.storage.run import Run

__all__ = ["check_batch", "rebuilt"]


def rebuilt(run: Run) -> Held:
    """Build the model and the first batch of a run once more.

    Args:
        run: A run of a built-in network or a model file.

    Returns:
        The batch, with the loss of the training; the weights are those of its start.

    Raises:
        AnalyzerError: If it is of another kind, or its program fails now, or the batch differs.
    """
    kind = run.manifest.get("kind")
    if kind == "zoo":
        held = _zoo(run.manifest)
    elif kind == "model file":
        held = _model_file(run.manifest)
    else:
        raise AnalyzerError(
            f"run '{run.name}' is of {_described(kind)}; probing it means to start that program "
            "once more, up to its first update: add --replay"
        )
    check_batch(run, held)
    return held


def _described(kind: Any) -> str:
    return "a training script" if kind == "script" else "a Recorder in somebody's own program"


class _Loss:
    """The loss of a built-in training: a function of output and targets, on one batch."""

    def __init__(self, loss: Callable[[Any, Any], Tensor], target: Any) -> None:
        self._loss = loss
        self._target = target

    def __call__(self, output: Any, targets: Any = None) -> Tensor:
        return self._loss(output, self._target)

    @property
    def labels(self) -> Tensor | None:
        """The classes of the samples, where the targets are classes."""
        target = self._target
        is_classes = isinstance(target, Tensor) and target.dim() == 1
        return target if is_classes and not target.is_floating_point() else None


def _zoo(manifest: Mapping[str, Any]) -> Held:
    from torch.nn.functional import cross_entropy

    from analyzer.networks.data import batches, dataset
    from analyzer.networks.loop import seed_everything
    from analyzer.networks.zoo import zoo_for

    seed = manifest["seed"]
    seed_everything(seed)
    data = dataset(manifest["data"], seed=seed)
    model = zoo_for(manifest["argv"][0].removeprefix("zoo:"), data, seed=seed)
    stream = batches(data, manifest["batch_size"], seed=seed, device=torch.device("cpu"))
    return _first_batch(model, stream, cross_entropy)


def _model_file(manifest: Mapping[str, Any]) -> Held:
    from torch.nn.functional import cross_entropy

    from analyzer.networks.data import batches, dataset
    from analyzer.networks.loop import model_of, seed_everything

    seed, target = manifest["seed"], manifest["argv"][0]
    ending = run_program(target, manifest["argv"][1:])
    if ending.exit_code != 0:
        raise AnalyzerError(f"'{target}' failed; the run cannot be rebuilt from it")
    seed_everything(seed)
    model = model_of(ending.namespace, target)
    if "batches" in ending.namespace:
        stream = ending.namespace["batches"]()
    else:
        data = dataset(manifest["data"], seed=seed)
        size = manifest["batch_size"]
        stream = batches(data, size, seed=seed, device=torch.device("cpu"))
    return _first_batch(model, stream, ending.namespace.get("loss", cross_entropy))


def _first_batch(model: nn.Module, stream: Any, loss: Callable[[Any, Any], Tensor]) -> Held:
    inputs, target = next(iter(stream))
    return Held(0, Call(model, (inputs,), {}, None), _Loss(loss, target), None)


def check_batch(run: Run, held: Held) -> None:
    """Compare the first batch with the recorded one.

    Args:
        run: The run.
        held: The first batch of the training that was built again.

    Raises:
        AnalyzerError: If they differ: the data or the random numbers do.
    """
    expected = run.manifest.get("first_batch")
    if expected is not None and held.hash() != expected:
        raise AnalyzerError(
            f"the first batch of run '{run.name}' cannot be had again: its digest is "
            f"{held.hash()}, the recorded one {expected}. Data, seed, arguments or device differ"
        )
