"""How often a verdict errs: pairs that differ in their seed, and pairs whose mechanism is known.

    python benchmarks/verdict_null.py --record     # trains 120 small networks, some minutes
    python benchmarks/verdict_null.py              # the tables of docs/verdict.md, from the archive

Forty *null* pairs have one architecture and two seeds: of them nothing may be said to separate the
two. Of twenty *power* pairs the mechanism is known by construction. The archive,
``tests/archives/verdict.json``, holds the numbers that a verdict measures of each run, rounded to
four digits.
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
PAIRS_OF_A_KIND = 8
STEPS, LEARNING_RATE = 40, 0.01
PROBES = ("paths", "shattering", "jacobian", "lesion", "counterfactual", "forward_correlation")


class Kind(NamedTuple):
    """A network: `depth` layers in blocks of two, as `_network` builds it."""

    depth: int
    residual: bool = False
    activation: str = "relu"
    norm: bool = False
    init: str = "he"
    branch: float = 1.0
    cliff: int | None = None


NULL = {
    "He, ReLU, 4 deep": Kind(4),
    "He, ReLU, 20 deep": Kind(20),
    "batch norm, 20 deep": Kind(20, norm=True),
    "orthogonal, tanh, 20 deep": Kind(20, activation="tanh", init="orthogonal"),
    "residual, 20 deep": Kind(20, residual=True, branch=0.3),
}
"""Kinds of networks of which two seeds are compared."""
POWER: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "default weights, tanh, 20 deep": (Kind(20, activation="tanh", init="default"), ("vanishing",)),
    "default weights, tanh, 30 deep": (Kind(30, activation="tanh", init="default"), ("vanishing",)),
    "default weights, ReLU, 20 deep": (Kind(20, init="default"), ("vanishing",)),
    "default weights, ReLU, 30 deep": (Kind(30, init="default"), ("vanishing",)),
    "batch norm, 40 deep": (Kind(40, norm=True), ("exploding",)),
    "batch norm, 50 deep": (Kind(50, norm=True), ("exploding",)),
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
                sides = [_numbers(next(runs), kind, 2 * pair + k) for k in (0, 1)]
                found["null"].append({"kind": name, "plain": sides[0], "residual": sides[1]})
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
    archive.write_text(
        json.dumps(found, separators=(",", ":")).replace('{"kind"', '\n{"kind"') + "\n"
    )


def _numbers(path: Path, kind: Kind, seed: int) -> dict[str, Any]:
    """Train one network and measure it."""
    import torch

    import analyzer
    from analyzer.vocabulary.probes import PROBE_NAMES

    generator = torch.Generator().manual_seed(123)
    centers = torch.randn(10, 32, generator=generator)
    targets = torch.randint(0, 10, (1024,), generator=generator)
    inputs = centers[targets] + torch.randn(1024, 32, generator=generator)
    torch.manual_seed(seed)
    model = _network(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    order = torch.Generator().manual_seed(seed)
    probes = tuple(name for name in PROBES if name in PROBE_NAMES)
    if not kind.residual:
        probes = tuple(
            name for name in probes if name in ("shattering", "jacobian", "forward_correlation")
        )
    with analyzer.Recorder(model, path, probe=probes, splits_every=5, updates_every=5):
        for _ in range(STEPS):
            some = torch.randint(0, len(inputs), (64,), generator=order)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[some]), targets[some]).backward()
            optimizer.step()
    found = measured(analyzer.open_run(path)).items()
    return {key: _small(one) for key, one in found if isinstance(one, Measured) and key in _USED}


def _network(kind: Kind, width: int = 48) -> Any:
    import torch
    from torch import Tensor, nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(32, width), nn.Linear(width, 10)
            self.blocks = nn.ModuleList(self.branch() for _ in range(kind.depth // 2))

        def branch(self) -> nn.Module:
            layers: list[nn.Module] = []
            for _ in range(2):
                layers.append(nn.Linear(width, width))
                layers += [nn.BatchNorm1d(width)] if kind.norm else []
                layers.append(nn.ReLU() if kind.activation == "relu" else nn.Tanh())
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


def tables(archive: Mapping[str, Any]) -> str:
    """Return both tables as Markdown."""
    null = (
        (f"`{key}`", str(count), str(holds), str(unclear))
        for key, count, holds, unclear in null_rows(archive)
    )
    power = ((kind, f"`{keys}`", status) for kind, keys, status in power_rows(archive))
    return "\n\n".join(
        (
            markdown_table(("claim", "pairs of other seeds", "holds", "unclear"), null).strip(),
            markdown_table(("pair", "true by construction", "found"), power).strip(),
        )
    )


def main() -> None:
    """Record the archive, or print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--record", action="store_true", help="train all pairs and write the archive"
    )
    if parser.parse_args().record:
        record(ARCHIVE)
    print(tables(json.loads(ARCHIVE.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
