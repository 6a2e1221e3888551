"""Built-in networks by name: ``resnet20``, ``plain56-nonorm``, ``mlp50-residual``, ``simple28``.

A name is a family, a number and options joined by ``-``. The families, each plain and residual with
equal trunks:

- ``resnetN``, ``plainN`` (N = 6n + 2 layers): options ``a`` | ``b`` | ``c`` (shortcut), ``preact``,
  ``nonorm``, ``zeroinit``
- ``mlpN``, ``mlpN-residual`` (N linear layers): options ``pair`` (shortcuts span two layers),
  ``preact``, ``batchnorm`` | ``layernorm``
- ``simpleN``, ``simpleN-plain`` (N convolutions of constant width): options ``single`` (shortcuts
  span one convolution), ``batchnorm``

Everywhere: ``wK`` (width K) and ``he`` | ``default`` (initialization). Without these, nets with
batch norm and ``resnet``/``plain`` start from He's initialization, all others, and nets without
norm, from PyTorch's.
"""

import difflib
import re
from dataclasses import dataclass

from torch import nn

from analyzer.errors import ScriptError
from analyzer.networks.blocks import INITIALIZATIONS
from analyzer.networks.data import Dataset
from analyzer.networks.models import MLP, ConstantWidthNet, ResNet

__all__ = ["EXAMPLES", "plain_twin", "zoo", "zoo_for"]

_NAME = re.compile(r"(resnet|plain|mlp|simple)([1-9][0-9]{0,3})((?:-[a-z0-9]+)*)")
_WIDTH = re.compile(r"w([1-9][0-9]{0,3})")
_CONVOLUTIONAL = ("preact", "nonorm", "zeroinit")
_OPTIONS = {
    "resnet": ("a", "b", "c", *_CONVOLUTIONAL),
    "plain": _CONVOLUTIONAL,
    "mlp": ("residual", "pair", "preact", "batchnorm", "layernorm"),
    "simple": ("plain", "single", "batchnorm"),
}
_EXCLUSIVE = (("a", "b", "c"), ("batchnorm", "layernorm"), INITIALIZATIONS)
EXAMPLES = (
    *(f"{family}{depth}" for depth in (20, 32, 44, 56, 110) for family in ("resnet", "plain")),
    *("resnet20-b", "resnet20-c", "resnet20-preact", "resnet110-preact", "resnet20-zeroinit"),
    *("resnet20-nonorm", "plain20-nonorm", "resnet56-nonorm", "plain56-nonorm"),
    *("mlp10", "mlp10-residual", "mlp50", "mlp50-residual", "mlp50-batchnorm"),
    *("mlp50-residual-batchnorm", "mlp50-residual-pair"),
    *("simple28", "simple28-plain", "simple28-batchnorm", "simple28-single"),
)


@dataclass(frozen=True)
class _Name:
    """A name taken apart."""

    family: str
    number: int
    options: tuple[str, ...]
    width: int | None

    def has(self, option: str) -> bool:
        return option in self.options

    def first(self, *choices: str) -> str | None:
        return next((choice for choice in choices if self.has(choice)), None)

    def initialization(self, default: str) -> str:
        return self.first(*INITIALIZATIONS) or default


def zoo(
    name: str, *, in_channels: int, num_classes: int, image_size: int, seed: int = 0
) -> nn.Module:
    """Build a network by name; equal seeds give twins with equal trunks.

    Args:
        name: See the module's description, for instance ``"resnet20"``.
        in_channels: Channels of the images.
        num_classes: Number of outputs.
        image_size: Height and width of the square images.
        seed: Seed of the initial weights; the global random state is not touched.

    Returns:
        The network, in training mode, on the CPU: ``[batch, in_channels, image_size, image_size]``
        to ``[batch, num_classes]``.

    Raises:
        ScriptError: If the name is unknown, or its number does not fit the family.
    """
    parsed = _parsed(name)
    try:
        if parsed.family == "mlp":
            return _mlp(parsed, in_channels * image_size**2, num_classes, seed)
        if parsed.family == "simple":
            return _simple(parsed, in_channels, num_classes, seed)
        return _resnet(parsed, in_channels, num_classes, seed)
    except ValueError as error:
        raise ScriptError(f"zoo network {name!r}: {error}") from None


def zoo_for(name: str, data: Dataset, *, seed: int = 0) -> nn.Module:
    """Build a network by name that fits some data.

    Args:
        name: As for `zoo`.
        data: Gives channels, size and number of classes; vectors count as images of one pixel.
        seed: Seed of the initial weights.

    Returns:
        The network, in training mode, on the CPU.
    """
    channels, *size = data.shape if len(data.shape) == 3 else (data.shape[0], 1)
    return zoo(
        name, in_channels=channels, num_classes=data.num_classes, image_size=size[0], seed=seed
    )


def plain_twin(name: str) -> str:
    """Return the name of the same network without shortcuts; a plain network's own name.

    Raises:
        ScriptError: If the name is unknown.
    """
    parsed = _parsed(name)
    family, dropped = parsed.family, ("a", "b", "c", "residual", "plain")
    kept = [option for option in name.split("-")[1:] if option not in dropped]
    if family == "simple":
        kept.insert(0, "plain")
    return "-".join([f"{'plain' if family == 'resnet' else family}{parsed.number}", *kept])


def _parsed(name: str) -> _Name:
    """Take a name apart, or refuse it."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ScriptError(_unknown(name))
    family, number, options = match[1], int(match[2]), match[3].split("-")[1:]
    widths = [option for option in options if _WIDTH.fullmatch(option)]
    others = tuple(option for option in options if option not in widths)
    allowed = (*_OPTIONS[family], *INITIALIZATIONS)
    wrong = [option for option in others if option not in allowed]
    if wrong:
        raise ScriptError(
            f"zoo network {name!r}: {wrong[0]!r} is not an option of {family!r}; "
            f"its options are {', '.join(allowed)} and w<width>"
        )
    for group in (*_EXCLUSIVE, widths):
        if sum(option in group for option in options) > 1:
            raise ScriptError(f"zoo network {name!r}: give only one of {', '.join(group)}")
    return _Name(family, number, others, int(widths[0][1:]) if widths else None)


def _unknown(name: str) -> str:
    """Say what is offered instead of ``name``."""
    near = difflib.get_close_matches(name, EXAMPLES, n=3, cutoff=0.4) or EXAMPLES[:3]
    return (
        f"zoo network {name!r} is unknown; a family (resnet, plain, mlp, simple), a number and "
        f"options are expected; the nearest names are {', '.join(near)}"
    )


def _resnet(name: _Name, in_channels: int, num_classes: int, seed: int) -> nn.Module:
    norm = None if name.has("nonorm") else "batch"
    return ResNet(
        name.number,
        in_channels=in_channels,
        num_classes=num_classes,
        width=name.width or 16,
        residual=name.family == "resnet",
        shortcut=(name.first("a", "b", "c") or "a").upper(),
        norm=norm,
        preactivation=name.has("preact"),
        zero_init=name.has("zeroinit"),
        # Without norm He's weights let the residual stream double in every block, up to overflow.
        initialization=name.initialization("he" if norm else "default"),
        seed=seed,
    )


def _mlp(name: _Name, in_features: int, num_classes: int, seed: int) -> nn.Module:
    kind = name.first("batchnorm", "layernorm")
    return MLP(
        in_features,
        num_classes,
        depth=name.number,
        width=name.width or 64,
        residual=name.has("residual"),
        block_layers=2 if name.has("pair") else 1,
        norm=kind and kind.removesuffix("norm"),
        preactivation=name.has("preact"),
        initialization=name.initialization("he" if kind else "default"),
        seed=seed,
    )


def _simple(name: _Name, in_channels: int, num_classes: int, seed: int) -> nn.Module:
    norm = "batch" if name.has("batchnorm") else None
    return ConstantWidthNet(
        name.number,
        in_channels=in_channels,
        num_classes=num_classes,
        width=name.width or 16,
        residual=not name.has("plain"),
        single=name.has("single"),
        norm=norm,
        initialization=name.initialization("he" if norm else "default"),
        seed=seed,
    )
