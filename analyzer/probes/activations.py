"""The output of every layer call of one forward pass, under the names that runs give layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _current_graph_task_id
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_map

from analyzer.errors import AnalyzerError
from analyzer.joins.calls import clean_path, is_layer, numbered_call, tensors_in
from analyzer.joins.find import call_arguments
from analyzer.joins.model_state import (
    arguments_copied,
    cloned,
    preserve_state,
    unobserved,
    unwrapped,
)
from analyzer.joins.trace import FunctionMode

__all__ = [
    "LayerOutput",
    "as_it_trains",
    "evaluating",
    "expect_samples_apart",
    "layer_outputs",
    "main_output",
    "mixes_samples",
    "mixing_error",
    "norm_over_batch",
    "num_samples",
    "samples_between",
]


@dataclass(frozen=True, eq=False)
class LayerOutput:
    """The output of one layer call.

    Args:
        name: Module path, ``#k`` for the k-th further call; the root's is its class name.
        tensor: The first floating tensor of the output; a later operation in place may change it.
        edge: Where its gradient arrives, whatever happens to the tensor later; None without one.
        value: A copy of what the tensor held then, where requested.
    """

    name: str
    module: nn.Module
    tensor: Tensor
    edge: Any
    value: Tensor | None


@contextmanager
def layer_outputs(model: nn.Module, *, with_values: bool = False) -> Iterator[list[LayerOutput]]:
    """Collect the output of every layer call of the forward passes inside, in call order.

    A layer is a call of a leaf module, or of one that owns parameters, with gradient enabled. Calls
    inside a backward pass (checkpointing) are none. The list fills while the model runs.
    """
    found: list[LayerOutput] = []
    times_called: dict[str, int] = {}

    def note(path: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        tensor = next((t for t in tensors_in(output) if t.is_floating_point()), None)
        if tensor is None or not torch.is_grad_enabled():
            return None
        is_copied = output is tensor and _is_own_view(tensor, args)
        if _current_graph_task_id() != -1:
            # Checkpointing computes it again; what its graph saves must stay the same.
            return tensor.clone() if is_copied else None
        name = numbered_call(path, times_called)
        # A view that is later changed in place gets a new node: its gradient would not be seen.
        tensor = tensor.clone() if is_copied else tensor
        edge = torch.autograd.graph.get_gradient_edge(tensor) if tensor.requires_grad else None
        value = tensor.detach().clone() if with_values else None
        found.append(LayerOutput(name, module, tensor, edge, value))
        return tensor if is_copied else None

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            is_hidden = isinstance(module, torch.jit.ScriptModule) and module is not model
            if is_hidden or not is_layer(path, module):
                continue
            name = clean_path(path) or type(model).__name__
            hooks.enter_context(module.register_forward_hook(partial(note, name)))
        yield found


def _is_own_view(tensor: Tensor, args: tuple[Any, ...]) -> bool:
    """Whether an output is a view of something that the layer made itself."""
    if not tensor._is_view():
        return False
    given = [t._base if t._is_view() else t for t in tensors_in(args)]
    return not any(tensor._base is other for other in given)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; put back modes, buffers and the random state at the end.

    In a program that is in inference mode, gradients are possible inside.
    """
    with torch.inference_mode(False), preserve_state(model, in_eval=True):
        yield


@contextmanager
def as_it_trains(
    model: nn.Module, inputs: Any, *, is_always: bool = False
) -> Iterator[dict[str, str]]:
    """Let a model compute what it computes in training, without dropout; yield notes that say so.

    All modules are in eval mode. A batch norm that is in training mode has the statistics that the
    inputs have there in the network as it is (mean and biased variance, as in training), held
    constant, so that samples do not see each other. One in eval mode keeps its running statistics,
    as a frozen one does in training: a model in eval mode is seen as it is evaluated, unless it
    ``is_always`` to be seen as it trains. Buffers, modes and the random state are put back.
    """
    model = unwrapped(model)
    is_trained = model.training or is_always
    everywhere = is_always and not model.training
    trained = [module for module in model.modules() if module.training or everywhere]
    noted = {"mode": "train" if is_trained else "eval", "batch_norms_held_fixed": "0"}
    with evaluating(model), ExitStack() as stack:
        for module in trained:
            # Each sample has its own statistics there, whatever the mode of the others.
            module.training = isinstance(module, _InstanceNorm)
        if any(module._buffers for module in trained):
            held = _statistics_of_batch(model, inputs, trained)
            for norm, statistics in held.values():
                _hold(norm, statistics, stack)
            noted["batch_norms_held_fixed"] = str(len(held))
        yield noted


_Statistics = dict[str, list[Tensor]]


class _BatchStatistics(FunctionMode):
    """Batch norms of some modules with the statistics of what they are given, which are kept.

    Attributes:
        held: By module, for each of its two buffers the statistics at each of its calls.
    """

    def __init__(self, trained: Sequence[nn.Module]) -> None:
        super().__init__()
        self.held: dict[int, tuple[nn.Module, _Statistics]] = {}
        self._owners = {
            id(buffer): (module, name)
            for module in trained
            for name, buffer in module._buffers.items()
            if buffer is not None
        }

    def call(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the function, a batch norm of these modules with the statistics of its input."""
        return self._norm(*args, **kwargs) if func is batch_norm else func(*args, **kwargs)

    def _norm(
        self,
        x: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        owner = self._owners.get(id(mean))
        if owner is None or mean is None or var is None:
            return batch_norm(x, mean, var, weight, bias, training, momentum, eps)
        wide = x.detach().float() if x.dtype.itemsize < 4 else x.detach()
        found = torch.var_mean(wide, [axis for axis in range(x.dim()) if axis != 1], correction=0)
        statistics = self.held.setdefault(id(owner[0]), (owner[0], {}))[1]
        for (_, name), value in zip((self._owners[id(var)], owner), found, strict=True):
            statistics.setdefault(name, []).append(value.to(mean.dtype))
        return batch_norm(x, found[1].to(mean), found[0].to(var), weight, bias, False, 0.0, eps)


def _statistics_of_batch(
    model: nn.Module, inputs: Any, trained: Sequence[nn.Module]
) -> dict[int, tuple[nn.Module, _Statistics]]:
    """Run the model once; return the statistics of its input at each batch norm that trains."""
    with torch.no_grad(), unobserved(model), warnings.catch_warnings():
        # Re-entrant checkpointing warns where nothing needs a gradient; here nothing does.
        warnings.simplefilter("ignore")
        for norm in trained:
            if isinstance(norm, _BatchNorm) and norm.running_mean is None:
                like = next(model.parameters(), torch.empty(0))
                for name in ("running_mean", "running_var"):
                    norm._buffers[name] = like.new_ones(norm.num_features)
        mode = _BatchStatistics(trained)
        args, kwargs = arguments_copied(*call_arguments(inputs))
        with mode:
            model(*args, **kwargs)
    return mode.held


def _hold(norm: nn.Module, statistics: _Statistics, stack: ExitStack) -> None:
    """Let a norm use these statistics; one with several calls at each of them its own."""
    for name, values in statistics.items():
        norm._buffers[name] = values[0]
    num_calls = max(map(len, statistics.values()))
    if num_calls == 1:
        return
    forward, count = norm.forward, 0

    def held(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        for name, values in statistics.items():
            norm._buffers[name] = values[count % len(values)]
        count += 1
        return forward(*args, **kwargs)

    before = vars(norm).get("forward")
    vars(norm)["forward"] = held

    def put_back() -> None:
        vars(norm).pop("forward") if before is None else vars(norm).update(forward=before)

    stack.callback(put_back)


def norm_over_batch(model: nn.Module) -> str | None:
    """Return the name of a batch norm that mixes samples in eval mode too; None without one."""
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            return clean_path(path) or type(module).__name__
    return None


def mixes_samples(main: Tensor, layers: Sequence[LayerOutput]) -> bool:
    """Return whether the first or last sample's output depends on the others' first activation."""
    edge = next((layer.edge for layer in layers if layer.edge is not None), None)
    generator = torch.Generator().manual_seed(0)
    if edge is None or len(main) < 2:
        return False
    for sample in (0, len(main) - 1):
        # Weights at random: the sum of a softmax, or of what a norm returns, depends on nothing.
        weights = torch.rand(main[sample].shape, generator=generator).to(main)
        value = (main[sample] * weights).sum()
        (gradient,) = torch.autograd.grad(value, edge, retain_graph=True, allow_unused=True)
        if gradient is not None and gradient.dim() and len(gradient) == len(main):
            others = torch.arange(len(main), device=gradient.device) != sample
            if bool((gradient[others].abs() > 0).any()):  # NaN is passed over
                return True
    return False


def expect_samples_apart(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], quantity: str
) -> None:
    """Refuse a model whose samples see each other, where a quantity is taken sample by sample.

    Raises:
        AnalyzerError: If the output of one sample depends on the activations of another.
    """
    given = cloned((args, dict(kwargs)), requires_grad=True)
    with torch.enable_grad(), preserve_state(model), layer_outputs(model) as layers:
        output = model(*given[0], **given[1])
        seen = [t for t in tensors_in(output) if t.dim() and t.is_floating_point()]
        if any(t.requires_grad for t in seen) and mixes_samples(main_output(output), layers):
            raise mixing_error(model, quantity)


def mixing_error(model: nn.Module, quantity: str) -> AnalyzerError:
    """Return what is said of a model whose samples see each other."""
    return AnalyzerError(
        f"{quantity} of {type(model).__name__!r} cannot be taken sample by sample: the output of "
        "one depends on the others, as with attention over the batch, or with batch norm in "
        "training mode; expected samples that do not see each other. Call model.eval(), or give "
        "one sample."
    )


def main_output(output: Any, *, needs_gradient: bool = True) -> Tensor:
    """Return the first floating tensor of a model's output that has a sample axis.

    Raises:
        ValueError: If there is none, or, where it `needs_gradient`, none with a gradient.
    """
    for tensor in tensors_in(output):
        is_seen = tensor.requires_grad or not needs_gradient
        if tensor.dim() and tensor.is_floating_point() and is_seen:
            return tensor
    raise ValueError(
        f"the model's output, a {type(output).__name__!r}, holds no floating tensor with a "
        "gradient; expected one that depends on inputs or weights. Give a model that computes its "
        "output with gradient."
    )


def num_samples(inputs: Any) -> int:
    """Return the length of the first axis of the first tensor in a model's arguments; 1 if none."""
    return next((len(t) for t in tensors_in(inputs) if t.dim()), 1)


def samples_between(value: Any, start: int, stop: int, size: int) -> Any:
    """Return nested arguments with the sample axis of their tensors cut to a range of samples.

    Tensors whose first axis is not `size` long are left as they are.
    """

    def cut(leaf: Any) -> Any:
        has_samples = isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == size
        return leaf[start:stop] if has_samples else leaf

    return tree_map(cut, value)
