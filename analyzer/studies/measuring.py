"""What several experiments need: gradients by layer, and a training with a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

from analyzer.joins.calls import clean_path, numbered_call
from analyzer.joins.products import norm_of
from analyzer.joins.trace import FunctionMode
from analyzer.networks.data import Dataset, batches
from analyzer.networks.loop import choose_device, train
from analyzer.probes.activations import layer_outputs

__all__ = ["LayerSizes", "Recipe", "Scores", "error_rate", "gaussian", "layer_sizes", "trained"]


class Scores(nn.Module):
    """Stands for what a softmax inside a module is given: the scores of an attention."""


@dataclass(frozen=True)
class LayerSizes:
    """How large activation and gradient of one layer are.

    Args:
        name: Module path, ``#k`` for the k-th further call.
        module: The layer; one of `Scores` for what is given to a softmax.
        shape: Of the output.
        activation_norm: ‖y‖₂ of the output.
        gradient_norm: ‖∂L/∂y‖₂; None where no gradient arrives.
        value: The output itself, a copy.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    activation_norm: float
    gradient_norm: float | None
    value: Tensor

    @property
    def has_weights(self) -> bool:
        """Whether the layer has parameters of its own: others do what these make them."""
        return any(True for _ in self.module.parameters(recurse=False))

    @property
    def fan_in(self) -> int:
        """How many numbers a unit reads; 0 for a norm, 1 for an embedding."""
        if isinstance(self.module, nn.Embedding):
            return 1
        weights = (p for p in self.module.parameters(recurse=False) if p.dim() > 1)
        return next((weight[0].numel() for weight in weights), 0)


_OF_ATTENTION = ("softmax", "scaled_dot_product_attention")


class _Softmaxes(FunctionMode):
    """Notes what each softmax is given, also that of scaled dot products."""

    def __init__(self, note: Callable[[Tensor], object]) -> None:
        super().__init__()
        self._note = note

    def call(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the function; note what a softmax in it is given."""
        if name == "multi_head_attention_forward":  # no mode sees what it calls
            with mock.patch.dict(vars(functional), dict(map(self._seen, _OF_ATTENTION))):
                return func(*args, **kwargs)
        if name == "softmax":
            self._note(args[0] if args else kwargs["input"])
        elif name == "scaled_dot_product_attention":
            query, key = (
                args[k] if len(args) > k else kwargs[n] for k, n in ((0, "query"), (1, "key"))
            )
            scale = kwargs.get("scale") or 1 / math.sqrt(query.shape[-1])
            self._note(scale * query @ key.transpose(-2, -1))
        return func(*args, **kwargs)

    def _seen(self, name: str) -> tuple[str, Callable[..., Any]]:
        """A function of torch by its name, and what stands for it."""
        func = getattr(functional, name)
        return name, lambda *args, **kwargs: self.call(func, name, args, kwargs)


@contextmanager
def _attention_scores(
    model: nn.Module, position: Callable[[], int]
) -> Iterator[list[tuple[int, str, Tensor]]]:
    """Collect what each softmax is given: where among others, in which module, and the numbers."""
    found: list[tuple[int, str, Tensor]] = []
    inside: list[str] = []
    times_called: dict[str, int] = {}

    def note(scores: Tensor) -> None:
        name = numbered_call(f"{inside[-1]} (scores)", times_called)
        found.append((position(), name, scores.detach().clone()))

    def enter(name: str, *_: Any) -> None:
        inside.append(name)

    def leave(*_: Any) -> None:
        inside.pop()

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            name = clean_path(path) or type(model).__name__
            hooks.enter_context(module.register_forward_pre_hook(partial(enter, name)))
            hooks.enter_context(module.register_forward_hook(leave, always_call=True))
        hooks.enter_context(_Softmaxes(lambda scores: note(scores) if inside else None))
        yield found


def layer_sizes(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    loss: Callable[[Any, Any], Tensor] = cross_entropy,
    *,
    with_scores: bool = False,
) -> list[LayerSizes]:
    """Return activation and gradient of each layer for one batch, in the mode the model is in.

    In call order, on demand with the scores of attention. Neither weights nor ``.grad`` change; a
    batch norm that trains counts the batch.
    """
    scores: list[tuple[int, str, Tensor]] = []
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        layers = stack.enter_context(layer_outputs(model, with_values=True))
        if with_scores:
            scores = stack.enter_context(_attention_scores(model, lambda: len(layers)))
        value = loss(model(inputs), targets)
    edges = [layer.edge for layer in layers if layer.edge is not None]
    found = iter(torch.autograd.grad(value, edges, allow_unused=True))
    sizes = []
    for layer in layers:
        gradient = next(found) if layer.edge is not None else None
        assert layer.value is not None
        sizes.append(
            LayerSizes(
                layer.name,
                layer.module,
                tuple(layer.value.shape),
                norm_of(layer.value),
                None if gradient is None else norm_of(gradient),
                layer.value,
            )
        )
    for place, name, seen in reversed(scores):
        one = LayerSizes(name, Scores(), tuple(seen.shape), norm_of(seen), None, seen)
        sizes.insert(place, one)
    return sizes


def gaussian(seed: int, *shape: int) -> Tensor:
    """Draw from N(0, 1) with a private generator."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with momentum.

    Args:
        milestones: Steps at which the learning rate falls to a tenth.
        warmup: Steps at the beginning with a tenth of the learning rate.
        augment: Whether images are padded by 4, cropped at random and mirrored, as for CIFAR-10.
    """

    steps: int
    lr: float = 0.1
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False
    milestones: Sequence[int] = ()
    warmup: int = 0
    augment: bool = False

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        drops = sum(step >= milestone for milestone in self.milestones)
        return self.lr * 0.1 ** (drops + (step < self.warmup))


def trained(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    device: str = "auto",
    on_step: Callable[[int, Tensor], None] | None = None,
) -> list[float]:
    """Train a model; return the loss of each step. It ends on the device, in training mode."""
    place = choose_device(device)
    model.to(place)
    optimizer = torch.optim.SGD(
        model.parameters(),
        recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        pairs = batches(data, recipe.batch_size, seed=seed, device=place)
        for step, (inputs, targets) in enumerate(pairs):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step)
            yield _cropped(inputs, generator) if recipe.augment else inputs, targets

    losses: list[Tensor] = []

    def note(step: int, loss: Tensor) -> None:
        losses.append(loss)
        if on_step is not None:
            on_step(step, loss)

    train(model, stream(), steps=recipe.steps, optimizer=optimizer, device=place, on_step=note)
    return torch.stack(losses).double().tolist() if losses else []


def _cropped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images ``[n, c, h, w]`` shifted by up to 4 pixels, half of them mirrored."""
    count, channels, height, width = images.shape
    padded = functional.pad(images, (4, 4, 4, 4))
    shifts = torch.randint(0, 9, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    rows = shifts[0] + torch.arange(height)
    columns = shifts[1] + torch.arange(width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    samples, planes = torch.arange(count), torch.arange(channels)
    place = (samples[:, None, None, None], planes[:, None, None], rows[:, None, :, None])
    return padded[(*place, columns[:, None, None, :])]


def error_rate(model: nn.Module, data: Dataset) -> float:
    """Return the share of wrong answers on the test part, in percent, in eval mode."""
    was_training = model.training
    model.eval()
    place = next(model.parameters()).device
    with torch.no_grad():
        right = [
            model(inputs.to(place)).argmax(1).cpu() == targets
            for inputs, targets in zip(
                torch.split(data.test_inputs, 500), torch.split(data.test_targets, 500), strict=True
            )
        ]
    model.train(was_training)
    return 100 * (1 - float(torch.cat(right).double().mean()))
