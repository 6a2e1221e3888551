"""Fully connected networks of any depth, with or without skip connections."""

import torch
from torch import Tensor, nn

from analyzer.networks.initialization import initialize, private_random_state

__all__ = ["MLP", "MLPBlock"]


def _norm(kind: str | None, width: int) -> nn.Module | None:
    """Return a norm over ``width`` features, or nothing."""
    if kind is None:
        return None
    if kind == "batch":
        return nn.BatchNorm1d(width)
    if kind == "layer":
        return nn.LayerNorm(width)
    raise ValueError(f"norm {kind!r} is unknown; choose 'batch', 'layer' or None")


class MLPBlock(nn.Module):
    """One or two linear layers, and ``+ x`` in the residual twin.

    Post-activation: ``relu(β·F(x) + x)`` with F = linear, or linear → relu → linear;
    pre-activation: ``β·F(x) + x`` with a ReLU before each linear layer of F. A norm follows each
    linear layer, or precedes each ReLU. Without the shortcut the block is exactly the plain one.

    Args:
        width: Number of input and output features.
        layers: Linear layers in the block, 1 or 2.
        residual: Whether the input is added.
        norm: ``"batch"``, ``"layer"`` or ``None``.
        preactivation: Whether norm and ReLU come before the linear layers.
        branch_scale: The factor β on the branch.
    """

    def __init__(
        self,
        width: int,
        *,
        layers: int = 1,
        residual: bool = True,
        norm: str | None = None,
        preactivation: bool = False,
        branch_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.branch_scale = branch_scale
        parts: list[nn.Module | None] = []
        for _ in range(layers):
            linear = nn.Linear(width, width)
            around = [_norm(norm, width), nn.ReLU()]
            parts += [*around, linear] if preactivation else [linear, *around]
        # After the addition, so that the post-activation block is relu(x + F(x)).
        self.relu = None if preactivation else parts.pop()
        self.branch = nn.Sequential(*[part for part in parts if part is not None])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, width]`` to ``[batch, width]``."""
        branch: Tensor = self.branch(x)
        if self.branch_scale != 1.0:
            branch = self.branch_scale * branch
        y = branch + x if self.residual else branch
        return y if self.relu is None else self.relu(y)


class MLP(nn.Module):
    """A fully connected net: an input layer, ``depth − 2`` in blocks, an output layer.

    Args:
        in_features: Elements of one input; inputs are flattened.
        num_classes: Number of outputs.
        depth: Linear layers in all, at least 2.
        width: Features of every hidden layer.
        residual: Whether the blocks add their input; the twin without has the same weights.
        block_layers: Linear layers that one shortcut spans, 1 or 2.
        norm: ``"batch"``, ``"layer"`` or ``None``.
        preactivation: Whether norm and ReLU come before the linear layers of a block.
        branch_scale: Factor on every branch.
        initialization: ``"he"`` or ``"default"``.
        seed: Seed of the initial weights; the global random state is not touched.

    Raises:
        ValueError: If the hidden layers cannot be divided into blocks, or an option is unknown.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        depth: int,
        width: int = 64,
        residual: bool = False,
        block_layers: int = 1,
        norm: str | None = None,
        preactivation: bool = False,
        branch_scale: float = 1.0,
        initialization: str = "default",
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_depth(depth, block_layers)
        with private_random_state(seed):
            self.flatten = nn.Flatten()
            self.input = nn.Linear(in_features, width)
            self.input_relu = None if preactivation else nn.ReLU()
            self.blocks = nn.Sequential(
                *[
                    MLPBlock(
                        width,
                        layers=block_layers,
                        residual=residual,
                        norm=norm,
                        preactivation=preactivation,
                        branch_scale=branch_scale,
                    )
                    for _ in range((depth - 2) // block_layers)
                ]
            )
            self.output_relu = nn.ReLU() if preactivation else None
            self.output = nn.Linear(width, num_classes)
        initialize(self, initialization, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, …]`` with ``in_features`` elements a sample to ``[batch, num_classes]``."""
        x = self.input(self.flatten(x))
        if self.input_relu is not None:
            x = self.input_relu(x)
        x = self.blocks(x)
        if self.output_relu is not None:
            x = self.output_relu(x)
        scores: torch.Tensor = self.output(x)
        return scores


def _check_depth(depth: int, block_layers: int) -> None:
    """Refuse a depth that does not leave whole blocks."""
    if block_layers not in (1, 2):
        raise ValueError(f"a block of {block_layers} linear layers is not offered; choose 1 or 2")
    if depth < 2 or (depth - 2) % block_layers:
        raise ValueError(
            f"an MLP of depth {depth} cannot be built: an input layer, whole blocks of "
            f"{block_layers} and an output layer are expected; choose 2 + {block_layers}·n"
        )
