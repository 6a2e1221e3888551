"""Seeded initial weights, equal for the plain and the residual twin."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["INITIALIZATIONS", "SHORTCUT", "initialize", "private_random_state", "zero"]

INITIALIZATIONS = ("he", "default")
SHORTCUT = "shortcut"  # attribute name of every shortcut that is a module

Initialized = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)


@contextmanager
def private_random_state(seed: int) -> Iterator[None]:
    """Draw from a CPU generator seeded with ``seed``; afterwards the global state is as before."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would also reseed the generators of every accelerator.
        torch.default_generator.manual_seed(seed)
        yield


def initialize(model: nn.Module, scheme: str, seed: int) -> None:
    """Draw all initial weights of ``model`` anew.

    The weights of the trunk are drawn first, in module order, and those of the shortcuts after
    them, so that a plain net and its residual twin start from the same trunk, projections or not.

    Args:
        model: Built of convolutions, linear layers and norms; changed in place.
        scheme: ``"he"``: ``w ~ N(0, 2 / fan_in)`` with zero biases; ``"default"``: PyTorch's own,
            ``w ~ U(−1/√fan_in, 1/√fan_in)`` and the same for biases.
        seed: Seed of the private generator.

    Raises:
        ValueError: If ``scheme`` is unknown.

    Reference:
        He et al. (2015), Delving deep into rectifiers, §2.2.
    """
    if scheme not in INITIALIZATIONS:
        raise ValueError(
            f"initialization {scheme!r} is unknown; choose one of {', '.join(INITIALIZATIONS)}"
        )
    named = [(n, m) for n, m in model.named_modules() if isinstance(m, Initialized)]
    named.sort(key=lambda item: SHORTCUT in item[0].split("."))
    with private_random_state(seed):
        for _, module in named:
            module.reset_parameters()
            if scheme == "he" and isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def zero(module: nn.Module) -> None:
    """Set all parameters to zero, so that a branch which ends in this module starts at zero."""
    for parameter in module.parameters(recurse=False):
        nn.init.zeros_(parameter)
