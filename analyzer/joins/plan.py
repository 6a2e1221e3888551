"""The joins of a network, and where they are in the autograd graph of any equal forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch.autograd.graph import Node

from analyzer.joins.calls import CallLog
from analyzer.joins.graph import Dataflow, Walk
from analyzer.joins.names import Scopes, numbered, unseen_parts
from analyzer.joins.search import Edge, Meeting, joins_of

__all__ = ["Join", "JoinPlan", "JoinSite", "joins_in_graph"]


@dataclass(frozen=True)
class Join:
    """A place where a shortcut and a residual branch that left the same tensor meet again.

    Args:
        index: Number in forward order, from 0.
        name: Path of the innermost module whose call contains fork and join.
        operation: ``add`` | ``cat``.
        shortcut: ``identity`` | ``projection`` | ``concat``.
        branch_layers: Names of the branch's layers, forward order; a gate's are among them.
        shortcut_layers: Names of the layers on the shortcut's lightest path, forward order.
        branch_parameters: Elements of all different parameters of the branch.
        shortcut_parameters: Elements of the different parameters on the shortcut's lightest path.
    """

    index: int
    name: str
    operation: str
    shortcut: str
    branch_layers: list[str] = field(hash=False)
    shortcut_layers: list[str] = field(hash=False)
    branch_parameters: int
    shortcut_parameters: int


@dataclass(frozen=True, eq=False)
class JoinSite:
    """A join in one autograd graph.

    Args:
        join: The join.
        node: The node that adds or concatenates; None in a part without gradient.
        fork: The node that made the fork; None where autograd does not see it.
        shortcut_slot: Input of `node` that comes from the shortcut.
        branch_slots: Inputs of `node` that come from the branch.
        shortcut_edges: Reads of the fork by the shortcut: (reader, its input slot, output number
            of the fork); None where autograd does not see one of them.
        branch_edges: Reads of the fork by the branch, likewise.
    """

    join: Join
    node: Node | None
    fork: Node | None
    shortcut_slot: int
    branch_slots: tuple[int, ...]
    shortcut_edges: tuple[tuple[Node, int, int], ...] | None
    branch_edges: tuple[tuple[Node, int, int], ...] | None


@dataclass(frozen=True)
class _Place:
    """A `JoinSite` as places in a `Walk`."""

    node: int | None
    fork: int | None
    shortcut_slot: int
    branch_slots: tuple[int, ...]
    shortcut_edges: tuple[Edge, ...] | None
    branch_edges: tuple[Edge, ...] | None


class JoinPlan:
    """The joins of a network, found once, located in the graph of each later forward pass.

    Holds no node of any graph.

    Args:
        joins: The joins, forward order.
        places: Where each is in the walk of the graph.
        structure: What a graph must look like for the places to hold.
        unseen: Modules whose joins cannot be seen, with the reason.
    """

    def __init__(
        self,
        joins: list[Join],
        places: list[_Place],
        structure: list[tuple[object, ...]],
        unseen: list[tuple[str, str]],
    ) -> None:
        self.joins = joins
        self.unseen = unseen
        self._places = places
        self._structure = structure

    def sites(self, roots: Iterable[Node]) -> list[JoinSite] | None:
        """Return the joins in another graph of the same network; None where it differs.

        Args:
            roots: The nodes that correspond to those in which the joins were found, same order.
        """
        return self.sites_in(Walk(roots))

    def sites_in(self, walk: Walk) -> list[JoinSite] | None:
        """Return the joins in a graph that was walked from the corresponding nodes."""
        if len(walk.nodes) != len(self._structure) or walk.structure() != self._structure:
            return None
        return [
            JoinSite(
                join=join,
                node=_node(walk, place.node),
                fork=_node(walk, place.fork),
                shortcut_slot=place.shortcut_slot,
                branch_slots=place.branch_slots,
                shortcut_edges=_nodes(walk, place.shortcut_edges),
                branch_edges=_nodes(walk, place.branch_edges),
            )
            for join, place in zip(self.joins, self._places, strict=True)
        ]


def joins_in_graph(roots: Iterable[Node] | Walk, log: CallLog) -> JoinPlan:
    """Find the residual joins of the graph below some nodes.

    Args:
        roots: Autograd nodes of the model's outputs, or of the loss; or the walk from them.
        log: The module calls of the forward that made the graph; its `Follower`, where it had
            one, adds what autograd does not see.

    Returns:
        The joins inside of the model's calls, forward order. Sums of scalars (loss terms) are none.
    """
    walk = roots if isinstance(roots, Walk) else Walk(roots)
    flow = Dataflow(walk, log)
    scopes = Scopes(flow, log)
    owned = [
        (meeting, owner)
        for meeting in joins_of(flow)
        if (owner := scopes.owner(meeting)) is not None and not _is_scalar(flow, meeting.join)
    ]
    names = numbered([log.root_name(owner) for _, owner in owned])
    joins = [
        Join(
            index=index,
            name=name,
            operation=flow.kinds[meeting.join],
            shortcut=_shortcut_kind(flow, meeting),
            branch_layers=scopes.layers(meeting.branch_region, owner, meeting.join),
            shortcut_layers=scopes.layers(meeting.shortcut_path, owner, meeting.join),
            branch_parameters=scopes.parameters(meeting.branch_region, owner),
            shortcut_parameters=scopes.parameters(meeting.shortcut_path, owner),
        )
        for index, (name, (meeting, owner)) in enumerate(zip(names, owned, strict=True))
    ]
    places = [_place(walk, flow, meeting) for meeting, _ in owned]
    return JoinPlan(joins, places, walk.structure(), unseen_parts(walk, log))


def _shortcut_kind(flow: Dataflow, meeting: Meeting) -> str:
    if flow.kinds[meeting.join] == "cat":
        return "concat"
    return "projection" if meeting.shortcut_elements else "identity"


def _is_scalar(flow: Dataflow, vertex: int) -> bool:
    maker = flow.vertices[vertex]
    shape = maker._input_metadata[0].shape if isinstance(maker, Node) else maker.shape
    return len(shape) == 0


def _place(walk: Walk, flow: Dataflow, meeting: Meeting) -> _Place:
    def edges(reads: tuple[Edge, ...]) -> tuple[Edge, ...] | None:
        found = [(walk.place.get(flow.vertices[v]), slot, number) for v, slot, number in reads]
        if any(place is None or slot < 0 for place, slot, _ in found):
            return None
        return tuple((place, slot, number) for place, slot, number in found if place is not None)

    fork = walk.place.get(flow.vertices[meeting.fork])
    return _Place(
        node=walk.place.get(flow.vertices[meeting.join]),
        fork=fork,
        shortcut_slot=meeting.shortcut_slot,
        branch_slots=meeting.branch_slots,
        shortcut_edges=edges(meeting.shortcut_edges) if fork is not None else None,
        branch_edges=edges(meeting.branch_edges) if fork is not None else None,
    )


def _node(walk: Walk, place: int | None) -> Any:
    return None if place is None else walk.nodes[place]


def _nodes(walk: Walk, edges: tuple[Edge, ...] | None) -> Any:
    return edges and tuple((walk.nodes[place], slot, number) for place, slot, number in edges)
