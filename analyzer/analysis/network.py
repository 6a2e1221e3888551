"""A network as nested modules with the data flow between them, and which of them fit on a screen.

A *box* is a module that holds layers. Closed, it stands for all of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from analyzer.errors import NotRecordedError
from analyzer.storage.run import Run
from analyzer.storage.schema import EDGES

if TYPE_CHECKING:
    pass

__all__ = ["Box", "Network", "network"]

_MOST_SHOWN, _MOST_CHILDREN = 72, 32
# What a folder of anybody's may ask for: modules within modules, rows, and looks at joins.
_MOST_NESTED, _MOST_ROWS, _MOST_LOOKS = 64, 100_000, 3_000_000
_INPUT = "input"


@dataclass(eq=False)
class Box:
    """A module, a layer, a join, the input, or neighbors of which there are too many.

    Args:
        key: Its path, with ``#k`` for a later call, ``[a … b]`` for a group, ``+k`` for a join.
        label: What is written on it.
        kind: ``module``, ``group``, ``layer``, ``join`` or ``input``.
        parent: The box around it; None at the top.
        layers: Ids of the layers in it.
        children: What it holds, in call order.
        order: Place of its first layer.
    """

    key: str
    label: str
    kind: str
    parent: "Box | None" = None
    layers: list[int] = field(default_factory=list)
    children: "list[Box]" = field(default_factory=list)
    order: float = 0.0


class Network:
    """The modules of a run and the data flow between their layers, whatever is shown of it.

    Joins are boxes of their own, which read the branch and the shortcut, where the edges show it.

    Args:
        run: A run.

    Attributes:
        boxes: All boxes by their key.
        top: Those in no other one.
        edges: Keys of source and target.
        joins: By the key of each join that has a box: its id and the key of what its shortcut is.
        has_edges: Whether the run recorded any.
    """

    def __init__(self, run: Run) -> None:
        rows = run.static_rows("layers").select(["layer", "name", "module", "kind"]).to_pylist()
        self.boxes: dict[str, Box] = {}
        self.top: list[Box] = []
        inner = {path for row in rows for path in _around(row["module"])}
        taken = inner | {row["name"] for row in rows}
        self._input, self._plus, self._looks = _INPUT, "+", _MOST_LOOKS
        while self._input in taken:  # a layer of that name
            self._input += "'"
        while any(name.startswith(self._plus) for name in taken):
            self._plus += "+"
        self._leaf: dict[int, str] = {-1: self._input}
        for row in rows:
            self._add_layer(row, row["module"] in inner)
        pairs = run.static_rows(EDGES)
        ends = zip(*(pairs.column(name).to_pylist() for name in ("source", "target")), strict=True)
        reads: dict[int, set[int | str]] = {}
        for source, target in ends:
            if target in self._leaf and source in self._leaf:
                reads.setdefault(target, set()).add(source)
        self.has_edges = bool(reads)
        self.joins: dict[str, tuple[int, frozenset[str]]] = {}
        by_name = {row["name"]: row["layer"] for row in rows}
        found = self._joined(run.static_rows("joins").to_pylist(), by_name, reads)
        self.edges = list(dict.fromkeys(found))
        for box in [*self.boxes.values()]:
            self._group(box.children, box)
        self._group(self.top, None)
        if any(source == self._input for source, _ in self.edges):
            self.boxes[self._input] = Box(self._input, _INPUT, "input", order=-1.0)
            self.top.insert(0, self.boxes[self._input])

    def _add_layer(self, row: Mapping[str, Any], has_inner: bool) -> None:
        around = [*_around(row["module"]), *([row["module"]] if has_inner else [])]
        parent: Box | None = None
        for path in around:
            box = self.boxes.get(path)
            if box is None:
                label = path[len(parent.key) + 1 :] if parent else path
                box = self._put(Box(path, label, "module", parent, order=row["layer"]))
            box.layers.append(row["layer"])
            parent = box
        # A module that is a layer and holds others has a layer of its own name in its box.
        key = f"{row['name']}:" if row["name"] in around else row["name"]
        label = row["name"].removeprefix(f"{parent.key}.") if parent else row["name"]
        layer = Box(key, label, "layer", parent, [row["layer"]], order=row["layer"])
        self._leaf[row["layer"]] = self._put(layer).key

    def _put(self, box: Box) -> Box:
        while box.key in self.boxes:  # two layers of one name, in a folder of anybody's
            box.key += f"'{len(self.boxes)}"
        self.boxes[box.key] = box
        (box.parent.children if box.parent else self.top).append(box)
        return box

    def _joined(
        self,
        rows: Sequence[Mapping[str, Any]],
        by_name: Mapping[str, int],
        reads: dict[int, set[int | str]],
    ) -> Iterable[tuple[str, str]]:
        """Put the boxes of joins between what reads their two sides and these sides."""
        readers: dict[int | str, set[int]] = {}
        for reader, some in reads.items():
            for one in some:
                readers.setdefault(one, set()).add(reader)
        joins = [_Sides.of(row, place, by_name, reads, readers) for place, row in enumerate(rows)]
        by_branch: dict[int | str, list[_Sides]] = {}
        for join in reversed(joins):
            for layer in join.branch if join else ():
                by_branch.setdefault(layer, []).append(join)  # type: ignore[arg-type]
        used: dict[int, _Sides] = {}

        def absorbed(sources: set[int | str], before: int) -> set[int | str]:
            while True:
                candidates = {
                    join.number: join
                    for source in sources
                    for join in by_branch.get(source, ())
                    if join.number < before and join.both <= sources
                }
                self._looks -= sum(1 + len(by_branch.get(source, ())) for source in sources)
                if not candidates or self._looks < 0:
                    return sources
                before = max(candidates)
                used[before] = candidates[before]
                sources = (sources - candidates[before].both) | {f"{self._plus}{before}"}

        targets: dict[int | str, set[int | str]] = {
            target: absorbed(sources, len(joins)) for target, sources in reads.items()
        }
        waiting = sorted(used, reverse=True)
        while waiting:
            join = used[waiting.pop(0)]
            known = set(used)
            shortcut = absorbed(set(join.shortcut), join.number)
            waiting = sorted({*waiting, *(set(used) - known)}, reverse=True)
            targets[f"{self._plus}{join.number}"] = set(join.branch) | shortcut
            self._add_join(join, rows[join.number], by_name, shortcut)
        for target, sources in targets.items():
            for source in sources:
                yield self._key(source), self._key(target)

    def _key(self, end: int | str) -> str:
        return end if isinstance(end, str) else self._leaf[end]

    def _add_join(
        self,
        join: "_Sides",
        row: Mapping[str, Any],
        by_name: Mapping[str, int],
        shortcut: set[int | str],
    ) -> None:
        parent = self.boxes.get(str(row["name"]).partition("#")[0])
        parent = parent if parent is not None and parent.kind == "module" else None
        sign = "+" if row["operation"] == "add" else "‖"
        last = max((by_name[name] for name in row["branch_layers"] if name in by_name), default=0)
        box = Box(f"{self._plus}{join.number}", sign, "join", parent, order=last + 0.5)
        self._put(box)
        self.joins[box.key] = (row["join"], frozenset(map(self._key, shortcut)))

    def _group(self, children: list[Box], parent: Box | None) -> None:
        """Put neighbors together where there are too many for one box."""
        children.sort(key=lambda box: box.order)
        while len(children) > _MOST_CHILDREN:
            size = max(2, -(-len(children) // _MOST_CHILDREN))
            groups = []
            for at in range(0, len(children), size):
                some = children[at : at + size]
                ends = f"{some[0].label} … {some[-1].label}"
                key = f"{parent.key if parent else ''}[{some[0].key} … {some[-1].key}]"
                key += "'" * (key in self.boxes)
                layers = [layer for box in some for layer in box.layers]
                group = Box(key, ends, "group", parent, layers, some, some[0].order)
                for box in some:
                    box.parent = group
                self.boxes[key] = group
                groups.append(group)
            children[:] = groups

    def shown(self, opened: Iterable[str], closed: Iterable[str]) -> tuple[set[str], list[Box]]:
        """Return the keys of the boxes that are open, and what stands in none that is closed.

        Level by level boxes are open as long as all fits; ``opened`` and ``closed`` come first.
        """
        wanted, unwanted = set(opened), set(closed)
        is_open: set[str] = set()
        level = self.top
        count = len(self.top)
        while level:
            inside = [b for b in level if b.children and b.key not in unwanted | wanted]
            more = sum(len(box.children) - 1 for box in inside)
            fits = count + more <= _MOST_SHOWN
            count += more if fits else 0
            now = {b.key for b in level if b.key in wanted and b.children}
            now |= {box.key for box in inside} if fits else set()
            is_open |= now
            level = [child for box in level if box.key in now for child in box.children]
        seen: list[Box] = []
        stack = self.top[::-1]
        while stack:
            box = stack.pop()
            seen.append(box)
            if box.key in is_open:
                stack += box.children[::-1]
        return is_open, seen

    def standing(self, is_open: set[str]) -> dict[str, str]:
        """Return for each key the key of the box that is drawn for it."""
        found = {}
        for key, box in self.boxes.items():
            outermost = box
            at: Box | None = box
            while at is not None:
                if at.key not in is_open:
                    outermost = at
                at = at.parent
            found[key] = outermost.key
        return found


@dataclass(frozen=True)
class _Sides:
    """What the box of a join reads: ends of its branch, and ends of its shortcut (or the fork)."""

    number: int
    branch: frozenset[int | str]
    shortcut: frozenset[int | str]

    @property
    def both(self) -> frozenset[int | str]:
        return self.branch | self.shortcut

    @classmethod
    def of(
        cls,
        row: Mapping[str, Any],
        number: int,
        by_name: Mapping[str, int],
        reads: Mapping[int, set[int | str]],
        readers: Mapping[int | str, set[int]],
    ) -> "_Sides | None":
        """Return the sides of the join in a row; None where the edges do not show them."""
        sides: list[set[int | str]] = [
            {by_name[name] for name in row[column] if name in by_name}
            for column in ("branch_layers", "shortcut_layers")
        ]
        branch, shortcut = sides
        inside = branch | shortcut
        # What is read by something outside of it.
        ends = [{one for one in side if readers.get(one, set()) - inside} for side in sides]
        fork = {one for layer in branch for one in reads.get(int(layer), ())} - inside
        other = ends[1] or fork
        if not ends[0] or not other:
            return None
        return cls(number, frozenset(ends[0]), frozenset(other))


def _around(module: str) -> list[str]:
    """The paths of the modules around one, the outermost first."""
    parts = module.split(".", _MOST_NESTED)
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def network(run: Run) -> Network:
    """Return the modules of a run and the data flow between its layers.

    Raises:
        NotRecordedError: If no layer was recorded, or there is too much to be drawn.
    """
    count = sum(run.static_rows(table).num_rows for table in ("layers", EDGES, "joins"))
    if count > _MOST_ROWS:
        raise NotRecordedError(
            f"run '{run.name}' has {count:,} layers, edges and joins, of which a network is not "
            f"drawn: expected {_MOST_ROWS:,} at most. Record some layers alone (--layers)"
        )
    if not run.static_rows("layers").num_rows:
        raise NotRecordedError(
            f"no layer was recorded in run '{run.name}'; a layer is there once a backward pass ran"
        )
    return Network(run)
