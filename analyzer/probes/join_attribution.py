"""Attribution through the shortcut and through the branch of each residual join."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from analyzer.joins.backward import SplitHooks
from analyzer.joins.find import output_nodes
from analyzer.joins.plan import Join, JoinSite, joins_in_graph
from analyzer.joins.products import JoinGradients
from analyzer.probes.conductance import PathSums
from analyzer.probes.input_path import InputPath

__all__ = ["JoinAttribution", "join_attributions"]


@dataclass(frozen=True)
class JoinAttribution:
    """How much of an output passes a join on either side.

    ``∫ ⟨∂F/∂x through one side, dx/dα⟩ dα`` at the fork x, on the way from the baseline.

    Args:
        join: Number of the join.
        name: Its name.
        shortcut: Through the shortcut; NaN where autograd does not see the fork.
        branch: Through the branch.
    """

    join: int
    name: str
    shortcut: float
    branch: float

    def __add__(self, other: JoinAttribution) -> JoinAttribution:
        return replace(
            self, shortcut=self.shortcut + other.shortcut, branch=self.branch + other.branch
        )

    def divided_by(self, count: int) -> JoinAttribution:
        """Return the mean over samples of a sum over them."""
        return replace(self, shortcut=self.shortcut / count, branch=self.branch / count)

    def as_dict(self) -> dict[str, int | str | float]:
        """Return the fields, and the share of the shortcut; NaN where both are 0."""
        total = self.shortcut + self.branch
        return asdict(self) | {"shortcut_share": self.shortcut / total if total else math.nan}


def join_attributions(
    done: PathSums, path: InputPath, start: int, stop: int
) -> list[JoinAttribution]:
    """Return the attribution through both sides of each join, summed over the samples.

    The gradient that reaches a fork through one side goes on to the inputs by itself, where it
    meets their change along the way.

    Args:
        done: A pass over the way, with its graph.
        path: The way.
        start: First sample of that pass.
        stop: Sample after the last one.
    """
    if done.picked is None or done.log is None:
        return []
    roots = output_nodes(done.output)
    sites = joins_in_graph(roots, done.log).sites(roots) or []
    gradients: dict[int, JoinGradients] = {}

    def note(join: Join, found: JoinGradients) -> None:
        gradients[join.index] = found

    hooks = SplitHooks(sites, note)
    try:
        torch.autograd.grad(done.picked, done.points, retain_graph=True, allow_unused=True)
    finally:
        hooks.finish()
    steps = _steps(done, path, start, stop)
    result = []
    for site in sites:
        found = gradients.get(site.join.index)
        sides = (None, None) if found is None else (found.shortcut, found.branch)
        shortcut, branch = (_integral(site, side, done, steps) for side in sides)
        result.append(JoinAttribution(site.join.index, site.join.name, shortcut, branch))
    return result


def _steps(done: PathSums, path: InputPath, start: int, stop: int) -> list[Tensor]:
    """Return the change of the points over each step of the way."""
    steps = []
    for end in path.ends:
        some = end[start:stop]
        steps.append(torch.cat([some * weight for weight in done.weights]))
    return steps


def _integral(
    site: JoinSite, side: tuple[Tensor, ...] | None, done: PathSums, steps: list[Tensor]
) -> float:
    """Send one side's gradient on from the fork; return what it makes of the inputs' change."""
    if side is None or site.fork is None:
        return math.nan
    forks = [GradientEdge(site.fork, number) for number in range(len(side))]
    arrived = torch.autograd.grad(
        forks, list(done.points), list(side), retain_graph=True, allow_unused=True
    )
    return math.fsum(
        float((gradient.double() * step).sum())
        for gradient, step in zip(arrived, steps, strict=True)
        if gradient is not None
    )
