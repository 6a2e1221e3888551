"""How often a verdict errs: pairs that differ in their seed, and pairs whose mechanism is known.

    python benchmarks/verdict_null.py --record     # trains 120 small networks, some minutes
    python benchmarks/verdict_null.py --held-out   # trains 80 others, of other kinds
    python benchmarks/verdict_null.py              # both tables, from the archives

Forty *null* pairs have one architecture and two seeds: of them nothing may be said to separate the
two. Of twenty *power* pairs the mechanism is known by construction. The limits of the claims were
set with these pairs in view; forty *held-out* pairs, of other architectures, seeds and data, were
trained afterwards, and no limit was changed for them. The archives, ``tests/archives/verdict.json``
and ``verdict_held_out.json``, hold the numbers that a verdict measures of each run, rounded to four
digits.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from analyzer.analysis.claim_numbers import MOMENTS
from analyzer.analysis.claims import Claim, judged, measured
from analyzer.analysis.finding import markdown_table
from analyzer.analysis.probe_numbers import Measured
from analyzer.analysis.statements import STATEMENTS

ARCHIVE = Path(__file__).parents[1] / "tests" / "archives" / "verdict.json"
HELD_OUT_ARCHIVE = ARCHIVE.with_name("verdict_held_out.json")
PAIRS_OF_A_KIND, PAIRS_OF_A_HELD_OUT_KIND = 8, 5
STEPS, LEARNING_RATE = 40, 0.01
# Seeds and data of an earlier set led to a change of a limit, so that they count no more.
HELD_OUT_SEED, HELD_OUT_DATA = 2000, 100
COMPARING = ("shattering", "jacobian", "forward_correlation", "sharpness:10")
PROBES = ("paths", "lesion", "counterfactual", *COMPARING)


class Kind(NamedTuple):
    """A network: `depth` layers in blocks of two, as `_network` builds it."""

    depth: int
    residual: bool = False
    activation: str = "relu"
    norm: str = ""
    init: str = "he"
    branch: float = 1.0
    cliff: int | None = None
    width: int = 48
    optimizer: str = "sgd"
    data: int = 123


NULL = {
    "He, ReLU, 4 deep": Kind(4),
    "He, ReLU, 20 deep": Kind(20),
    "batch norm, 20 deep": Kind(20, norm="batch"),
    "orthogonal, tanh, 20 deep": Kind(20, activation="tanh", init="orthogonal"),
    "residual, 20 deep": Kind(20, residual=True, branch=0.3),
}
"""Kinds of networks of which two seeds are compared."""
HELD_OUT = {
    "He, ReLU, 10 deep, width 64": Kind(10, width=64, data=7),
    "He, ReLU, 28 deep, width 96": Kind(28, width=96, data=7),
    "layer norm, 16 deep": Kind(16, norm="layer", data=8),
    "batch norm, 10 deep, Adam": Kind(10, norm="batch", optimizer="adam", data=8),
    "default weights, tanh, 6 deep": Kind(6, activation="tanh", init="default", data=9),
    "default weights, GELU, 8 deep, Adam": Kind(
        8, activation="gelu", init="default", optimizer="adam", data=9
    ),
    "residual, layer norm, 30 deep": Kind(30, residual=True, norm="layer", branch=0.2, data=10),
    "residual, batch norm, 16 deep, width 32": Kind(
        16, residual=True, norm="batch", width=32, data=10
    ),
}
"""Other kinds, of which five pairs each were trained after the limits were set."""
POWER: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "default weights, tanh, 20 deep": (Kind(20, activation="tanh", init="default"), ("vanishing",)),
    "default weights, tanh, 30 deep": (Kind(30, activation="tanh", init="default"), ("vanishing",)),
    "default weights, ReLU, 20 deep": (Kind(20, init="default"), ("vanishing",)),
    "default weights, ReLU, 30 deep": (Kind(30, init="default"), ("vanishing",)),
    "batch norm, 40 deep": (Kind(40, norm="batch"), ("exploding",)),
    "batch norm, 50 deep": (Kind(50, norm="batch"), ("exploding",)),
    "large weights, ReLU, 20 deep": (Kind(20, init="large", branch=0.1), ("exploding",)),
    "He, ReLU, 20 deep": (Kind(20, branch=0.2), ("shattering",)),
    "He, ReLU, 30 deep": (Kind(30, branch=0.2), ("shattering", "forward_collapse")),
    "a layer times 1e-4": (Kind(12, cliff=6), ("cliff",)),
}
"""The plain network of each pair, two seeds each, and the claims that hold by construction."""


_USED = {
    f"{one.number}_{moment}" if one.number else one.key
    for one in STATEMENTS
    for moment in MOMENTS
    if not one.is_of_residual
}
"""The numbers that compare two runs."""


def record(archive: Path) -> None:
    """Train all pairs and write what a verdict measures of them."""
    import torch

    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = {"null": [], "power": []}
    with tempfile.TemporaryDirectory() as folder:
        runs = (Path(folder) / str(k) for k in range(10_000))
        for name, kind in NULL.items():
            for pair in range(PAIRS_OF_A_KIND):
                found["null"].append(_null_pair(runs, name, kind, 2 * pair))
            print(name, flush=True)
        for name, (kind, mechanisms) in POWER.items():
            for seed in (0, 1):
                sides = [
                    _numbers(next(runs), kind._replace(residual=is_residual), seed)
                    for is_residual in (False, True)
                ]
                pair = {"kind": f"{name}, seed {seed}", "mechanisms": mechanisms}
                found["power"].append(pair | {"plain": sides[0], "residual": sides[1]})
            print(name, flush=True)
    _write(archive, found)


def record_held_out(archive: Path) -> None:
    """Train the held-out pairs and write what a verdict measures of them."""
    import torch

    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = {"null": []}
    with tempfile.TemporaryDirectory() as folder:
        runs = (Path(folder) / str(k) for k in range(10_000))
        for name, kind in HELD_OUT.items():
            kind = kind._replace(data=kind.data + HELD_OUT_DATA)
            for pair in range(PAIRS_OF_A_HELD_OUT_KIND):
                found["null"].append(_null_pair(runs, name, kind, HELD_OUT_SEED + 2 * pair))
            print(name, flush=True)
            _write(archive, found)


def _write(archive: Path, found: Mapping[str, Any]) -> None:
    text = json.dumps(found, separators=(",", ":")).replace('{"kind"', '\n{"kind"')
    archive.write_text(text + "\n")


def _null_pair(runs: Iterator[Path], name: str, kind: Kind, seed: int) -> dict[str, Any]:
    """Two seeds of one kind."""
    sides = [_numbers(next(runs), kind, seed + k) for k in (0, 1)]
    return {"kind": name, "plain": sides[0], "residual": sides[1]}


def _numbers(path: Path, kind: Kind, seed: int) -> dict[str, Any]:
    """Train one network and measure it."""
    import torch

    import analyzer

    generator = torch.Generator().manual_seed(kind.data)
    centers = torch.randn(10, 32, generator=generator)
    targets = torch.randint(0, 10, (1024,), generator=generator)
    inputs = centers[targets] + torch.randn(1024, 32, generator=generator)
    torch.manual_seed(seed)
    model = _network(kind)
    optimizer: Any = (
        torch.optim.Adam(model.parameters(), lr=LEARNING_RATE / 10)
        if kind.optimizer == "adam"
        else torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    )
    order = torch.Generator().manual_seed(seed)
    probes = PROBES if kind.residual else COMPARING
    with analyzer.Recorder(model, path, probe=probes, splits_every=5, updates_every=5):
        for _ in range(STEPS):
            some = torch.randint(0, len(inputs), (64,), generator=order)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[some]), targets[some]).backward()
            optimizer.step()
    found = measured(analyzer.open_run(path)).items()
    return {key: _small(one) for key, one in found if isinstance(one, Measured) and key in _USED}


def _network(kind: Kind) -> Any:
    import torch
    from torch import Tensor, nn

    width = kind.width
    norms = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}[kind.activation]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(32, width), nn.Linear(width, 10)
            self.blocks = nn.ModuleList(self.branch() for _ in range(kind.depth // 2))

        def branch(self) -> nn.Module:
            layers: list[nn.Module] = []
            for _ in range(2):
                layers.append(nn.Linear(width, width))
                layers += [norms[kind.norm](width)] if kind.norm else []
                layers.append(activation())
            return nn.Sequential(*layers)

        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self.stem(x)
            for block in self.blocks:
                h = h + kind.branch * block(h) if kind.residual else block(h)
            result: Tensor = self.head(h)
            return result

    model = Net()
    gain = math.sqrt(2) if kind.activation == "relu" else 1.0
    for module in model.modules():
        if not isinstance(module, nn.Linear) or kind.init == "default":
            continue
        if kind.init == "orthogonal":
            nn.init.orthogonal_(module.weight, gain)
        else:
            nn.init.kaiming_normal_(module.weight)
            with torch.no_grad():
                module.weight.mul_(
                    2.0 if kind.init == "large" and module is not model.head else 1.0
                )
        nn.init.zeros_(module.bias)
    if kind.cliff is not None:
        with torch.no_grad():
            model.blocks[kind.cliff // 2][0].weight.mul_(1e-4)
    return model


def _small(one: Measured) -> dict[str, Any]:
    """A number for the archive: four digits, defaults and queries left out."""
    plain = Measured(0.0, "")
    kept = {
        k: v
        for k, v in asdict(one).items()
        if k not in ("query", "where") and v != getattr(plain, k)
    }
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in kept.items()} | {
        "steps": one.steps[:1]
    }


def _of(stored: Mapping[str, Any]) -> dict[str, Measured | str]:
    """The numbers of a run as a verdict takes them."""
    known = {field.name for field in fields(Measured)}
    found: dict[str, Measured | str] = {
        key: Measured(
            **(
                {"value": 0.0, "query": ""}
                | {k: v for k, v in one.items() if k in known}
                | {"steps": tuple(one["steps"])}
            )
        )
        for key, one in stored.items()
    }
    return _Missing(found)


class _Missing(dict[str, Measured | str]):
    """What an archive does not hold was not measured."""

    def __missing__(self, key: str) -> str:
        return f"{key} is not in the archive"


def judgements(pairs: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Claim]]]:
    """Yield each pair of the archive with the claims about it."""
    for pair in pairs:
        made = judged([_of(pair["plain"])], [_of(pair["residual"])])
        yield pair, {claim.key: claim for claim in made}


def null_rows(archive: Mapping[str, Any]) -> list[tuple[str, int, int, int]]:
    """Return of each comparing claim in how many null pairs it was asked, holds and is unclear."""
    found = [claims for _, claims in judgements(archive["null"])]
    rows = []
    for statement in STATEMENTS:
        if statement.is_of_residual:
            continue
        states = [claims[statement.key].status for claims in found]
        states = [status for status in states if status != "not measured"]
        rows.append((statement.key, len(states), states.count("holds"), states.count("unclear")))
    return rows


def power_rows(archive: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return each power pair, the claims that hold by construction, and their status."""
    return [
        (
            pair["kind"],
            ", ".join(pair["mechanisms"]),
            ", ".join(claims[key].status for key in pair["mechanisms"]),
        )
        for pair, claims in judgements(archive["power"])
    ]


def null_table(archive: Mapping[str, Any]) -> str:
    """Return how often each claim holds of null pairs, as Markdown."""
    rows = (
        (f"`{key}`", str(count), str(holds), str(unclear))
        for key, count, holds, unclear in null_rows(archive)
    )
    return markdown_table(("claim", "pairs of other seeds", "holds", "unclear"), rows).strip()


def tables(archive: Mapping[str, Any]) -> str:
    """Return both tables as Markdown."""
    power = ((kind, f"`{keys}`", status) for kind, keys, status in power_rows(archive))
    return "\n\n".join(
        (
            null_table(archive),
            markdown_table(("pair", "true by construction", "found"), power).strip(),
        )
    )


def main() -> None:
    """Record an archive, or print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--record", action="store_true", help="train all pairs and write the archive"
    )
    parser.add_argument(
        "--held-out", action="store_true", help="train the held-out pairs and write their archive"
    )
    given = parser.parse_args()
    if given.record:
        record(ARCHIVE)
    if given.held_out:
        record_held_out(HELD_OUT_ARCHIVE)
    print(tables(json.loads(ARCHIVE.read_text(encoding="utf-8"))))
    print("\nHeld-out pairs:\n")
    print(null_table(json.loads(HELD_OUT_ARCHIVE.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
