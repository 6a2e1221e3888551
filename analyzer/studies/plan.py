"""What a study is to run: points, each with its arguments and the options of its recording."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analyzer.cli.session import options_from, options_text
from analyzer.errors import AnalyzerError
from analyzer.options import MODEL_FILE, RECORDER, ZOO, RecordOptions, options_of
from analyzer.storage.limits import LIMITS
from analyzer.storage.study import MOST_POINTS, PLAN_VERSION, Study, StudyPoint

__all__ = [
    "AXES",
    "PROBES",
    "Plan",
    "Point",
    "merged",
    "options_of_point",
    "plain_name",
    "product",
    "refuse_foreign",
]

AXES = ("depth", "shortcuts", "norm", "initialization", "width", "seed", "lr")
"""What a study of networks can vary."""

PROBES = ("paths", "shattering", "forward_correlation", "counterfactual", "lesion")
"""What is probed at the first and the final weights of each point, unless other probes are named:
what the claims of the verdict read, save the Jacobian, which takes longer than a small training."""

_NORMS = {
    "resnet": {"batch": "", "none": "nonorm"},
    "mlp": {"batch": "batchnorm", "layer": "layernorm", "none": ""},
    "simple": {"batch": "batchnorm", "none": ""},
}
_LONGEST_NAME = 100
# Of each element of an input, in the samples that are drawn.
_SAMPLE_BYTES = 8_000
# Others would begin, continue or write something beside the run of the point.
_OF_A_POINT = {"target", "args", "point", "quiet", "seed", "lr"} | {
    one.name
    for scope in (RECORDER, MODEL_FILE)
    for one in options_of(scope)
    if one.name not in ("resume", "first_step")
}


@dataclass(frozen=True)
class Point:
    """One training of a study.

    Args:
        name: Letters, digits, ``.``, ``_``, ``=``, ``+`` and ``-``: the name of its run.
        arguments: What tells it from the others; numbers, truth values and texts.
        record: How it is recorded; its ``run`` is set by the study.
    """

    name: str
    arguments: Mapping[str, Any]
    record: RecordOptions


@dataclass(frozen=True)
class Plan:
    """The points of a study.

    Args:
        target: What they train: ``zoo:FAMILY``, a model file or a script.
        points: In the order in which they are run.
        is_script: Whether the target trains by itself: it gets a Python of its own.
    """

    target: str
    points: tuple[Point, ...]
    is_script: bool = False

    @property
    def axes(self) -> dict[str, list[Any]]:
        """Each argument with the values that it takes, in the order of the points."""
        found: dict[str, dict[Any, None]] = {}
        for point in self.points:
            for name, value in point.arguments.items():
                found.setdefault(name, {})[value] = None
        return {name: list(some) for name, some in found.items()}

    def as_json(self) -> dict[str, Any]:
        """Return the plan as its file holds it."""
        return {
            "schema_version": PLAN_VERSION,
            "target": self.target,
            "is_script": self.is_script,
            "axes": self.axes,
            "points": [
                {
                    "name": point.name,
                    "arguments": dict(point.arguments),
                    "record": _changed(point.record),
                }
                for point in self.points
            ],
        }


def _changed(options: RecordOptions) -> dict[str, Any]:
    """The options that are not at their default, as JSON holds them."""
    usual = json.loads(options_text(RecordOptions()))
    given = json.loads(options_text(options))
    return {name: value for name, value in given.items() if value != usual[name]}


def options_of_point(point: StudyPoint) -> RecordOptions:
    """Return the options that a plan on disk holds of a point.

    Raises:
        AnalyzerError: If they are not options.
    """
    usual = json.loads(options_text(RecordOptions()))
    try:
        if unknown := set(point.record) - _OF_A_POINT:
            raise ValueError(f"not those of a point: {', '.join(sorted(unknown))}")
        return options_from(json.dumps({**usual, **point.record}))
    except (TypeError, ValueError) as error:
        raise AnalyzerError(
            f"point {point.name!r} of the plan has options that cannot be read ({error}); expected "
            "those of `analyzer record`. Plan the study again, in another folder."
        ) from error


def refuse_foreign(study: Study, point: StudyPoint) -> None:
    """Refuse a point that only the folder names, and that would run its code or fill the memory.

    Raises:
        AnalyzerError: If it is of no built-in network, or of one that is too large.
    """
    options = options_of_point(point)
    if not options.target.startswith(ZOO):
        raise AnalyzerError(
            f"study '{study.path.name}' runs {options.target or study.target}; a study of a file "
            "is continued by the command that began it, which names the file. Give --model or "
            "--script."
        )
    kind, _, argument = options.data.partition(":")
    numbers = [int(one) for one in re.findall("[0-9]{1,9}", options.target)]
    weights = numbers[0] * numbers[-1] ** 2 if len(numbers) > 1 else 0
    LIMITS.check("unpacked_mib", 4 * weights / 2**20, f"the weights of {options.target} take")
    if kind == "synthetic":
        sizes = [int(one) for one in re.findall("[0-9]{1,9}", argument)]
        size = _SAMPLE_BYTES * math.prod(sizes) / 2**20
        LIMITS.check("total_mib", size, f"the data {options.data} take")


def product(
    target: str,
    *,
    depth: Sequence[int] = (),
    shortcuts: Sequence[Any] = (),
    norm: Sequence[str] = (),
    initialization: Sequence[str] = (),
    width: Sequence[int] = (),
    seed: Sequence[int] = (0,),
    lr: Sequence[float] = (),
    grid: Mapping[str, Sequence[Any]] | None = None,
    options: RecordOptions | None = None,
    args: Sequence[str] = (),
    is_script: bool = False,
) -> Plan:
    """Return the plan of every combination of some values.

    Args:
        target: ``zoo:FAMILY`` (``zoo:resnet``, ``zoo:mlp-pair``, ``zoo:simple``), a model file
            with ``build_model``, or a script.
        depth: Number in the name of the network; argument ``depth`` of ``build_model``.
        shortcuts: ``on``, ``off``, a number by which all are multiplied, or ``without NAME``.
        norm: ``batch``, ``layer`` or ``none``.
        initialization: ``he`` or ``default``.
        width: As ``w16`` in the name of the network; argument ``width`` of ``build_model``.
        seed: Of weights and batches.
        lr: Learning rate of the built-in loop.
        grid: Further arguments of ``build_model``, or of the script by their option.
        options: How every point is recorded.
        args: Arguments of the script that all points have.
        is_script: Whether the target is a script.

    Returns:
        The plan, seeds innermost: a study that is stopped early has whole pairs. Where ``grid``
        varies the script's own seed, that is the seed of a point.

    Raises:
        AnalyzerError: If there is no network of such arguments, or there are too many points.
    """
    given = {
        "depth": depth,
        "shortcuts": shortcuts,
        "norm": norm,
        "initialization": initialization,
        "width": width,
        "lr": lr,
    }
    for name in grid or {}:
        if len(given.get(name, ())):
            raise AnalyzerError(
                f"values of {name} are given twice, by an option of their own and by --grid; "
                "leave one out"
            )
    given |= {**(grid or {}), "seed": seed}
    if "seed" in map(plain_name, grid or {}):
        if list(seed) != [0]:
            raise AnalyzerError("seeds are given twice, by --seeds and by --grid; leave one out")
        del given["seed"]
    if (count := math.prod(max(len(some), 1) for some in given.values())) > MOST_POINTS:
        raise AnalyzerError(
            f"the plan has {count:,} points; expected at most {MOST_POINTS:,}. Leave values out"
        )
    axes = {name: list(dict.fromkeys(some)) for name, some in given.items() if len(some)}
    base = options or RecordOptions(probe=PROBES)
    made = []
    for combination in itertools.product(*axes.values()):
        arguments = dict(zip(axes, combination, strict=True))
        made.append(_point(target, arguments, base, grid or {}, args))
    return Plan(target, tuple(made), is_script)


def _point(
    target: str,
    arguments: dict[str, Any],
    base: RecordOptions,
    grid: Mapping[str, Any],
    args: Sequence[str],
) -> Point:
    plain_names = {plain_name(name): value for name, value in arguments.items()}
    scale = _scale(arguments.get("shortcuts", "on"))
    seed = plain_names.get("seed", base.seed)
    changes: dict[str, Any] = {
        "quiet": True,
        "point": plain_names,
        "seed": seed if isinstance(seed, int) else base.seed,
        "lr": arguments.get("lr", base.lr),
    }
    if target.startswith(ZOO):
        changes["target"] = ZOO + _zoo_name(target.removeprefix(ZOO), arguments)
        if arguments.get("shortcuts") != "off":
            changes["skip_scale"] = scale
    else:
        given = [[name, str(arguments[name])] for name in grid if name.startswith("-")]
        changes |= {"target": target, "args": (*args, *itertools.chain(*given))}
        changes["skip_scale"] = scale
    return Point(_name(plain_names), plain_names, replace(base, **changes))


def plain_name(name: str) -> str:
    """An option of a script as the name of an argument."""
    return name.lstrip("-").replace("-", "_")


def _scale(shortcuts: Any) -> Any:
    """By what shortcuts are multiplied; None where they are left alone."""
    if shortcuts == "on":
        return None
    if shortcuts == "off":
        return 0.0
    if isinstance(shortcuts, str) and shortcuts.startswith("without "):
        return {shortcuts.removeprefix("without "): 0.0}
    if isinstance(shortcuts, int | float) and not isinstance(shortcuts, bool):
        return float(shortcuts)
    raise AnalyzerError(
        f"shortcuts is {shortcuts!r}; expected on, off, a number by which all are multiplied, or "
        "'without NAME' of a join"
    )


def _zoo_name(family: str, arguments: Mapping[str, Any]) -> str:
    """The name of a built-in network of a family with some arguments."""
    kind, *more = family.split("-")
    if kind not in _NORMS:
        raise AnalyzerError(
            f"zoo:{family} is no family of networks; expected {', '.join(_NORMS)}, with options "
            "as in zoo:resnet-preact"
        )
    if "depth" not in arguments:
        raise AnalyzerError(
            f"zoo:{family} has no depth; expected some with --depths, as in --depths 8,20,56"
        )
    depth, is_plain = arguments["depth"], arguments.get("shortcuts") == "off"
    _check_depth(kind, depth, more)
    norm = arguments.get("norm")
    if norm is not None and norm not in _NORMS[kind]:
        raise AnalyzerError(
            f"norm {norm!r} is none of zoo:{kind}; expected {', '.join(_NORMS[kind])}"
        )
    parts = [*more]
    if kind == "resnet":
        first = f"{'plain' if is_plain else 'resnet'}{depth}"
        parts = [part for part in parts if not is_plain or part not in ("a", "b", "c")]
    else:
        first = f"{kind}{depth}"
        marks = {("mlp", False): "residual", ("simple", True): "plain"}
        if mark := marks.get((kind, is_plain)):
            parts.append(mark)
    parts += [_NORMS[kind][norm]] if norm and _NORMS[kind][norm] else []
    if "initialization" in arguments:
        parts.append(str(arguments["initialization"]))
    if "width" in arguments:
        parts.append(f"w{arguments['width']}")
    return "-".join([first, *parts])


def _check_depth(kind: str, depth: int, more: Sequence[str]) -> None:
    """Refuse a depth that no network of the family has, before anything runs."""
    span = 2 if "pair" in more or (kind == "simple" and "single" not in more) else 1
    is_right, rule = {
        "resnet": (depth >= 8 and (depth - 2) % 6 == 0, "6n + 2, as 8, 20, 56"),
        "mlp": (depth > 2 and (depth - 2) % span == 0, f"2 + {span}n"),
        "simple": (depth >= span and depth % span == 0, f"a multiple of {span}"),
    }[kind]
    if not is_right:
        raise AnalyzerError(f"depth {depth} is none of zoo:{kind}; expected {rule}")


def _name(arguments: Mapping[str, Any]) -> str:
    """The name of a point: its arguments, ``depth8-on-seed0``."""
    parts = []
    for name, value in arguments.items():
        text = re.sub(r"[^A-Za-z0-9._+]+", "_", str(value))
        parts.append(text if name in ("shortcuts", "norm", "initialization") else f"{name}{text}")
        if name == "shortcuts" and not isinstance(value, str):
            parts[-1] = f"scale{text}"
        elif name == "norm":
            parts[-1] = {"none": "nonorm"}.get(text, f"{text}norm")
    whole = "-".join(parts)
    # Two values that are written alike once they are letters, and names too long for a folder.
    exact = json.dumps(arguments, sort_keys=True, default=str)
    is_exact = all(re.fullmatch(r"[A-Za-z0-9._+]+", str(v)) for v in arguments.values())
    if is_exact and len(whole) <= _LONGEST_NAME:
        return whole
    return f"{whole[:_LONGEST_NAME]}-{hashlib.sha256(exact.encode()).hexdigest()[:6]}"


def merged(known: Iterable[StudyPoint], plan: Plan) -> list[StudyPoint]:
    """Return the points on disk that a plan lacks.

    Raises:
        AnalyzerError: If a point has other options on disk: what was run does not change.
    """
    wanted = {one["name"]: one for one in plan.as_json()["points"]}
    left = []
    for point in known:
        here = wanted.get(point.name)
        if here is None:
            left.append(point)
        elif json.loads(json.dumps(here["record"])) != dict(point.record):
            names = sorted(
                name
                for name in {*here["record"], *point.record}
                if here["record"].get(name) != point.record.get(name)
            )
            raise AnalyzerError(
                f"point {point.name!r} was planned with other options ({', '.join(names)}); a "
                "point that was run does not change. Give the same options, or another --study."
            )
    return left
