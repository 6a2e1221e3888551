"""Records the networks of the lesson and writes its data: ``make lesson-data``.

The runs stay in a folder of their own (``runs/lesson`` unless another is named); one that has
finished is not recorded again. From them come the small tables in ``analyzer/lesson/data``, which
the package ships and from which every figure and every number of the lesson is made.
"""

import sys
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import analyzer
from analyzer.analysis.training import run_training
from analyzer.cli.training import train_zoo
from analyzer.networks.data import dataset
from analyzer.options import RecordOptions
from analyzer.storage.run import Run, open_run

DATA = Path(__file__).parents[1] / "analyzer" / "lesson" / "data"
DEPTHS, SEEDS = (4, 8, 16, 32), (0, 1, 2)
STEPS = 200
MLP_STEPS = 300
# Steps of the twins of which the lesson shows gradients.
SHOWN = (0, 10, 50, 100, 150, 190)
TWINS = {"plain": "simple28-plain", "residual": "simple28"}
# Chains of linear layers and ReLU by their depth.
MLPS = {"plain": "mlp{}", "residual": "mlp{}-residual"}
OTHERS = {
    **MLPS,
    "plain, batch norm": "mlp{}-batchnorm",
    "plain, He weights": "mlp{}-he",
    "residual, He weights": "mlp{}-residual-he",
}
GRID_DEPTHS, GRID_SCALES, GRID_WIDTH = (5, 10, 20, 40), (0.2, 0.4, 0.7, 1.0, 1.2), 64


def recorded(folder: Path, name: str, seed: int = 0, steps: int = STEPS, **options: object) -> Run:
    """Return the run of a network of the zoo on the digits; it is trained if it is not there."""
    path = folder / "-".join([name, str(seed), *options])
    if path.exists() and open_run(path).status == "finished":
        return open_run(path)
    print(f"recording {path.name}", flush=True)
    train_zoo(
        RecordOptions(
            target=f"zoo:{name}",
            run=path,
            steps=steps,
            seed=seed,
            lr=0.02,
            batch_size=64,
            quiet=True,
            **options,  # type: ignore[arg-type]
        ),
        1.0,
    )
    return open_run(path)


def mlp(folder: Path, name: str, seed: int = 0) -> Run:
    """A chain of linear layers, of which the first step and the losses are recorded."""
    return recorded(folder, name, seed, MLP_STEPS, every=MLP_STEPS, columns="norms")


def degradation(folder: Path) -> pd.DataFrame:
    """The final training loss by depth, with and without shortcuts, for each seed."""
    rows = []
    for depth, seed, (kind, name) in product(DEPTHS, SEEDS, MLPS.items()):
        run = mlp(folder, name.format(depth), seed)
        rows.append((depth, seed, kind, run_training(run).final_loss))
    return pd.DataFrame(rows, columns=["depth", "seed", "net", "final_loss"])


def factors() -> pd.DataFrame:
    """Output gradient by layer of untrained nets of linear layers and ReLU, weights scaled.

    Each linear layer has He's weights times ``scale``; ``ratio`` is its output gradient divided by
    that of the last one.
    """
    rows = []
    for depth, scale, is_residual in product(GRID_DEPTHS, GRID_SCALES, (False, True)):
        norms = gradients_of_chain(depth, scale, is_residual)
        rows += [
            (depth, scale, "residual" if is_residual else "plain", k + 1, norm / norms[-1])
            for k, norm in enumerate(norms)
        ]
    return pd.DataFrame(rows, columns=["depth", "scale", "net", "layer", "ratio"])


class Chain(nn.Module):
    """``relu(linear(x))``, with ``+ x`` or without, many times."""

    def __init__(self, depth: int, scale: float, is_residual: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.is_residual = is_residual
        self.layers = nn.ModuleList(nn.Linear(GRID_WIDTH, GRID_WIDTH) for _ in range(depth))
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
            layer.weight.data *= scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[batch, 64]`` to the same shape."""
        for layer in self.layers:
            y = torch.relu(layer(x))
            x = x + y if self.is_residual else y
        return x


def gradients_of_chain(depth: int, scale: float, is_residual: bool) -> list[float]:
    """Output gradient norms of the linear layers of a chain at its first weights, one batch."""
    digits = dataset("digits", seed=0)
    inputs = digits.train_inputs[:64].flatten(1).double()
    net = Chain(depth, scale, is_residual).double()
    outputs: list[torch.Tensor] = []
    for layer in net.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    loss = nn.functional.cross_entropy(net(inputs)[:, :10], digits.train_targets[:64])
    return [float(g.norm()) for g in torch.autograd.grad(loss, outputs)]


def of_twins(folder: Path) -> dict[str, pd.DataFrame]:
    """Gradients, activations, losses, splits, paths, counterfactual and landscape of the twins."""
    probes = ("paths", "counterfactual", "landscape")
    layers, steps, landscapes = [], [], []
    runs = {kind: recorded(folder, name, probe=probes) for kind, name in TWINS.items()}
    for kind, run in runs.items():
        layers.append(gradients(run, kind, SHOWN))
        steps.append(losses(run, kind))
        landscape = run.probe("landscape")
        landscape = landscape[landscape["step"] == landscape["step"].max()]
        landscapes.append(landscape[["alpha", "beta", "loss"]].assign(net=kind))
    run = runs["residual"]
    paths = run.probe("paths")
    counterfactual = run.probe("counterfactual")
    names = run.layers.set_index("layer")
    counterfactual = counterfactual.join(names[["depth"]], on="layer")
    return {
        "layers": pd.concat(layers, ignore_index=True),
        "steps": pd.concat(steps, ignore_index=True),
        "splits": run.splits(steps=list(SHOWN)).drop(columns=["rank"], errors="ignore"),
        "joins": run.joins[["join", "name", "shortcut"]],
        "paths": paths[["step", "length", "num_paths", "gradient_norm", "share"]],
        "counterfactual": counterfactual[
            ["step", "layer", "depth", "skip_scale", "rescaled", "output_gradient_norm"]
        ],
        "landscape": pd.concat(landscapes, ignore_index=True),
    }


def gradients(run: Run, kind: str, steps: tuple[int, ...]) -> pd.DataFrame:
    """Output gradient norms of the layers that have parameters."""
    static = run.layers[run.layers["num_parameters"] > 0].set_index("layer")
    rows = run.layer_stats(
        columns=["output_gradient_norm"],
        layers=[int(k) for k in static.index],
        steps=list(steps),
    )
    rows = rows.drop(columns=[c for c in ("name", "rank") if c in rows])
    return rows.join(static[["name", "depth"]], on="layer").assign(net=kind)


def losses(run: Run, kind: str) -> pd.DataFrame:
    """The loss of every step."""
    return run.steps[["step", "loss"]].assign(net=kind)


def of_shapes(folder: Path) -> pd.DataFrame:
    """Share and kind of each shortcut of a 20-layer ResNet, and the size of options A to C."""
    rows = []
    for option in "abc":
        run = recorded(folder, f"resnet20-{option}", steps=1)
        splits = run.splits(steps=[0]).set_index("join")
        total = int(run.parameters["num_elements"].sum())
        for join in run.joins.itertuples():
            shape = next(
                list(row.output_shape)
                for row in run.layers[::-1].itertuples()
                if row.name.startswith(f"{join.name}.")
            )
            share = float(splits.loc[join.join, "shortcut_share"])
            rows.append((option.upper(), join.name, join.shortcut, share, str(shape), total))
    return pd.DataFrame(
        rows, columns=["option", "join", "shortcut", "shortcut_share", "shape", "num_parameters"]
    )


def of_others(folder: Path) -> dict[str, pd.DataFrame]:
    """Nets that show what shortcuts do not explain: gradients at the first step, and losses."""
    layers, steps = [], []
    for kind, name in OTHERS.items():
        run = mlp(folder, name.format(DEPTHS[-1]))
        layers.append(gradients(run, kind, (0,)))
        steps.append(losses(run, kind))
    return {
        "others_layers": pd.concat(layers, ignore_index=True),
        "others_steps": pd.concat(steps, ignore_index=True),
    }


def main(folder: Path) -> None:
    """Record what is missing in ``folder`` and write all tables."""
    DATA.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    tables = {
        "factors": factors(),
        **of_twins(folder),
        "shapes": of_shapes(folder),
        **of_others(folder),
        "degradation": degradation(folder),
    }
    for name, rows in tables.items():
        rows.to_parquet(DATA / f"{name}.parquet", index=False, compression="zstd")
    size = sum(file.stat().st_size for file in DATA.glob("*.parquet"))
    print(f"{len(tables)} tables, {size / 1e6:.2f} MB, analyzer {analyzer.__version__}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/lesson"))
