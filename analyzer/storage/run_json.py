"""What ``run.json`` says of a run, and how it is read: data of these types, and nothing else.

A run folder may come from anybody. A field of another type is left out and named as damaged, so
that no reader meets one.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analyzer.errors import RunNotFoundError, SchemaError
from analyzer.launch import RANKS
from analyzer.options import RECORDER, expected_path, options_of
from analyzer.storage.limits import LIMITS
from analyzer.storage.parts import listing
from analyzer.storage.remote import local
from analyzer.storage.schema import READABLE_VERSIONS, SCHEMA_VERSION

__all__ = [
    "CRASHED_AFTER_SECONDS",
    "FIELDS",
    "age_seconds",
    "losses",
    "read_manifest",
    "run_path",
    "status_of",
]

CRASHED_AFTER_SECONDS = 30.0
_STATUSES = ("running", "finished", "failed", "interrupted")
_MOST_NESTED, _MOST_NAMED, _MOST_LETTERS = 16, 3, 300
# The files of all ranks together have as many times the limit of one.
_MOST_RANK_FILES = 16
# What a value takes at least, as ours are some letters long: a file of 4 MB has no more of them
# than it may, one of empty lists ten times as many.
_VALUE_MIB = 12 / 2**20
_RANK = re.compile(r"a(\d{1,5})\.r(\d{1,5})\.json")
# What a reader gets of what each rank says of itself.
_OF_RANK = (
    *("rank", "attempt", "status", "error", "heartbeat", "steps", "lost_steps", "storage_error"),
    "elements",
)

FIELDS: dict[str, tuple[str, str]] = {
    "schema_version": ("int", f"Version of this layout; {SCHEMA_VERSION} now."),
    "status": ("string", "`running`, `finished`, `failed` or `interrupted`."),
    "error": ("string?", "What a failed run failed with."),
    "heartbeat": (
        "string",
        "UTC time at which the file was written last, every 5 s while running. A running run is "
        f"shown as `crashed` when it is older than {CRASHED_AFTER_SECONDS:.0f} s.",
    ),
    "created": ("string", "UTC time at which the run began."),
    "name": ("string?", "Name of its folder when it began."),
    "steps": ("int", "Steps that were recorded; where some were lost, those on disk."),
    "last_loss": ("float?", "Loss of the last recorded step."),
    "last_logged": ("object of floats?", "Last value of each number that was logged, of 32 names."),
    "attempt": ("int?", "How often the training was begun before; nothing for the first time."),
    "world_size": ("int?", "Processes of the launch; nothing for one that was started alone."),
    "attempts": (
        "list of objects?",
        "Of a resumed run: when each attempt began, its `first_step`, and how it ended. `seconds` "
        "and the like are those of all attempts.",
    ),
    "num_layers": ("int", "Rows of the table of layers."),
    "num_parameters": ("int", "Rows of the table of parameters."),
    "num_joins": ("int", "Rows of the table of joins."),
    "num_edges": ("int?", "Rows of the table of edges; earlier runs have none."),
    "data_parallel_ranks": ("int?", "Ranks by which output gradients are divided when pooled."),
    "parts": (
        "object of objects of ints?",
        "In how many parts the ranks hold each of `layers` and `parameters`.",
    ),
    "elements": ("object of ints?", "Elements of each parameter that this rank holds."),
    "seconds": ("float?", "Wall time of the training."),
    "recorder_seconds": ("float?", "What of it the recorder took."),
    "probe_seconds": ("float?", "What of it probes took."),
    "kind": ("string?", "`script`, `model file` or `zoo`, where a command recorded it."),
    "argv": ("list of strings?", "The program and its arguments; other paths as `<path:n>`."),
    "seed": ("int?", "Seed that was set at the start."),
    "skip_scale": ("float or object of floats?", "By what shortcuts were multiplied."),
    "point": ("object?", "Arguments of the point of a study that the run is."),
    "rescaled": ("bool?", "Whether the branches got the scale of the network with shortcuts."),
    "schedule": ("options?", "The options of the recording."),
    "versions": ("object of strings?", "Versions of packages."),
    "determinism": ("object?", "Flags of torch that decide whether numbers repeat."),
    "platform": ("string?", "System and machine."),
    "git": ("object?", "`commit` of the working folder, and whether it was `dirty`."),
    "device": ("string?", "Where the parameters were."),
    "dtype": ("string?", "Types of the parameters."),
    "data": ("string?", "What a built-in training trained on."),
    "batch_size": ("int?", "Its samples per batch."),
    "optimizer": ("string?", "Its optimizer."),
    "optimizers": ("list of objects?", "Class and options of each optimizer that stepped."),
    "data_hash": ("string?", "Digest of the data."),
    "first_batch": ("string?", "Digest of the first batch."),
    "conditions": (
        "conditions?",
        "What explains findings: first `inputs`, reduction and measure of the `loss`, what it is "
        "given, and entropy of its classes, `gradients_kept` over updates, normalization in "
        "`eval_mode`, parameters `without_optimizer`, weights with `alike_units` at the first "
        "update, number of `roots`.",
    ),
    "not_recorded": ("list of strings?", "What is not recorded, and why."),
    "storage_error": ("string?", "Why nothing more could be written from some step on."),
    "lost_steps": ("int?", "Steps that were recorded and could not be written."),
    "damaged": (
        "list of strings?",
        "`file: reason` for each file that the writer found damaged or could not write.",
    ),
    "flushes": (
        "object of objects of ints?",
        "Parts that were written of each table by `<rank>.<attempt>`, before any merge: a flush "
        "that no part holds is lost.",
    ),
}
"""Type and meaning of each field; ``?`` marks those that may be null or missing."""


def _is_int(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**64


def _is_float(value: Any) -> bool:
    return type(value) is float or (_is_int(value) and abs(value) < 2**63)


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _all(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(one is None or of(one) for one in value.values())


def _are_options(value: Any) -> bool:
    known = {one.name: one.metadata["option"].expected for one in options_of(RECORDER)}
    return isinstance(value, dict) and all(
        one is None or known[name](one) is None for name, one in value.items() if name in known
    )


def _are_ints(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_int, value))


def _is_input(value: Any) -> bool:
    sizes = ("root_mean_square", "largest")
    return (
        isinstance(value, dict)
        and _are_ints(value.get("shape"))
        and all(value.get(name) is None or _is_float(value[name]) for name in sizes)
    )


def _is_eval_mode(value: Any) -> bool:
    layers = value.get("layers") if isinstance(value, dict) else None
    if not isinstance(layers, dict) or not _is_int(value.get("looks")):
        return False
    names = ("steps", "first_step", "last_step")
    return all(
        isinstance(one, dict) and all(_is_int(one.get(name)) for name in names)
        for one in layers.values()
    )


def _is_loss(value: Any) -> bool:
    return isinstance(value, dict) and all(
        value.get(name) is None or check(value[name])
        for name, check in (
            ("reduction", _is_string),
            ("class_entropy", _is_float),
            ("targets", _is_int),
            ("measure", _is_string),
            ("sign", _is_int),
            ("given", _is_string),
            ("taken_by", _is_string),
            ("axis", _is_int),
        )
    )


_CONDITIONS: dict[str, Callable[[Any], bool]] = {
    "inputs": lambda value: isinstance(value, list) and all(map(_is_input, value)),
    "loss": _is_loss,
    "gradients_kept": lambda value: _all(value, _is_int),
    "eval_mode": _is_eval_mode,
    "without_optimizer": _are_ints,
    "alike_units": _are_ints,
    "roots": _is_int,
}


def _are_conditions(value: Any) -> bool:
    return isinstance(value, dict) and all(
        check(value[name]) for name, check in _CONDITIONS.items() if name in value
    )


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "conditions": _are_conditions,
    "int": _is_int,
    "float": _is_float,
    "bool": lambda value: isinstance(value, bool),
    "string": _is_string,
    "list of strings": lambda value: isinstance(value, list) and all(map(_is_string, value)),
    "list of objects": lambda value: (
        isinstance(value, list) and all(isinstance(one, dict) for one in value)
    ),
    "object": lambda value: isinstance(value, dict),
    "object of floats": lambda value: _all(value, _is_float),
    "object of strings": lambda value: _all(value, _is_string),
    "object of ints": lambda value: _all(value, _is_int),
    "object of objects of ints": lambda value: _all(value, lambda one: _all(one, _is_int)),
    "float or object of floats": lambda value: _is_float(value) or _all(value, _is_float),
    "options": _are_options,
}


def _of_types(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that have their types, and the others among what is damaged."""
    wrong = [
        name
        for name, (type_, _) in FIELDS.items()
        if found.get(name) is not None and not _CHECKS[type_.removesuffix("?")](found[name])
    ]
    kept = {name: value for name, value in found.items() if name not in wrong}
    if wrong:
        named = [f"{path.name}: {n} is {found[n]!r:.80}, no {FIELDS[n][0]}" for n in wrong]
        kept["damaged"] = [*(kept.get("damaged") or []), *named]
    return kept


def run_path(path: str | Path) -> Path:
    """Return the path of a run as one, of a URL that of its copy; refuse what is none."""
    if (expected := expected_path(path)) is not None:
        raise RunNotFoundError(f"no run at {path!r}; expected {expected}")
    return local(path)


def read_manifest(folder: Path, *, with_ranks: bool = True) -> dict[str, Any]:
    """Return the manifest of a run.

    Every value in it is data: no path that it names is ever opened.

    Args:
        folder: Folder of the run.
        with_ranks: Whether what other ranks say of themselves is added.

    Raises:
        RunNotFoundError: If the folder holds no run.
        SchemaError: If ``run.json`` is damaged, foreign, or of a version that cannot be read.
    """
    path = folder / "run.json"
    if not os.path.isdir(folder):  # also of a name that no folder can have
        raise RunNotFoundError(
            f"no run at '{folder}': the folder does not exist; `analyzer runs` lists the runs"
        )
    if path.is_symlink() or not path.is_file():
        raise RunNotFoundError(
            f"no run at '{folder}': expected a file run.json in it; "
            "`analyzer record` makes a run folder"
        )
    manifest = _parsed(folder, path)
    manifest.pop("ranks", None)  # the files of the ranks say it
    _check_version(folder, manifest.get("schema_version"))
    return _with_ranks(folder, manifest) if with_ranks else manifest


def _with_ranks(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Add the field ``ranks``, and what was written and what went wrong on the others."""
    found = _said_by_ranks(folder / RANKS)
    if not found:
        return manifest
    flushes: dict[str, dict[str, Any]] = {}
    for one in (*found, manifest):
        for table, counts in (one.get("flushes") or {}).items():
            flushes.setdefault(table, {}).update(counts or {})
    manifest["flushes"] = flushes
    newest = [one for one in found if one["attempt"] == found[-1]["attempt"]]
    notes = dict.fromkeys(manifest.get("not_recorded") or ())
    for one in newest:
        said = one.get("not_recorded") or ()
        notes |= dict.fromkeys(f"rank {one['rank']}: {text}" for text in said if text not in notes)
    if notes:
        manifest["not_recorded"] = list(notes)
    manifest["ranks"] = [{name: one.get(name) for name in _OF_RANK} for one in found]
    failed = next((one for one in newest if status_of(one) in ("failed", "crashed")), None)
    if failed is not None and manifest.get("status") in ("finished", "interrupted"):
        manifest["status"] = "failed"
        manifest["error"] = f"rank {failed['rank']}: {failed.get('error') or 'it was killed'}"
    return manifest


def _said_by_ranks(folder: Path) -> list[dict[str, Any]]:
    """What the file of each rank and attempt says, in their order; nothing of a damaged one."""
    names = [match for match in map(_RANK.fullmatch, listing(folder)) if match]
    mib = sum((folder / match[0]).stat().st_size for match in names) / 2**20
    LIMITS.check("manifest_mib", mib / _MOST_RANK_FILES, "a sixteenth of its files of ranks takes")
    values = sum((folder / match[0]).read_bytes().count(b",") for match in names)
    LIMITS.check("manifest_mib", values * _VALUE_MIB / 3, "a third of what its ranks list takes")
    found = []
    for match in names:
        try:
            own = _parsed(folder, folder / match[0])
        except SchemaError:
            own = {}
        found.append({**own, "attempt": int(match[1]), "rank": int(match[2])})
    return sorted(found, key=lambda one: (one["attempt"], one["rank"]))


def _parsed(folder: Path, path: Path) -> dict[str, Any]:
    try:
        LIMITS.check("manifest_mib", path.stat().st_size / 2**20, "it takes")
        text = path.read_text(encoding="utf-8")
        LIMITS.check("manifest_mib", text.count(",") * _VALUE_MIB, "what it lists takes")
        manifest = _clean(json.loads(text))
        if not isinstance(manifest, dict):
            raise ValueError(f"a JSON {type(manifest).__name__}, expected an object")
    except (OSError, ValueError, RecursionError) as error:
        raise SchemaError(
            f"run '{folder}' cannot be read: {path.name} is damaged ({error}); "
            "restore the file, or record the run again"
        ) from error
    return _of_types(path, manifest)


def _clean(value: Any, depth: int = 0) -> Any:
    """The value, halves of surrogates in its texts escaped: they have no encoding."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if not isinstance(value, dict | list):
        return value
    if depth == _MOST_NESTED:
        raise ValueError(f"it is nested more than {_MOST_NESTED} deep")
    if isinstance(value, list):
        return [_clean(one, depth + 1) for one in value]
    return {_clean(name): _clean(one, depth + 1) for name, one in value.items()}


def _check_version(folder: Path, found: Any) -> None:
    """Raise SchemaError for a schema version that this analyzer does not read."""
    if type(found) is int and found in READABLE_VERSIONS:
        return
    first, last = READABLE_VERSIONS.start, READABLE_VERSIONS.stop - 1
    if type(found) is int and found > last:
        remedy = "Upgrade analyzer, or record the run again."
    else:
        remedy = "It was not written by this program, or it is damaged; record the run again."
    raise SchemaError(
        f"run '{folder}' has schema version {found!r}; this analyzer reads {first} to {last}. "
        f"{remedy}"
    )


def age_seconds(moment: str | None) -> float | None:
    """Return the seconds since an ISO time; None for anything else."""
    try:
        then = datetime.fromisoformat(moment or "")
        if then.tzinfo is None:
            then = then.replace(tzinfo=UTC)
        return (datetime.now(UTC) - then).total_seconds()
    except (ValueError, OverflowError):
        return None


def status_of(manifest: Mapping[str, Any]) -> str:
    """Return running, finished, failed, interrupted or unknown; crashed where the heart stopped."""
    status = manifest.get("status")
    if status == "running":
        age = age_seconds(manifest.get("heartbeat"))
        return "crashed" if age is None or age > CRASHED_AFTER_SECONDS else "running"
    return str(status) if status in _STATUSES else "unknown"


def losses(manifest: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each kind of loss that a manifest tells of; none for a whole run."""
    found = []
    steps, lost = (max(0, manifest.get(name) or 0) for name in ("steps", "lost_steps"))
    reason = str(manifest.get("storage_error") or "")[:_MOST_LETTERS]
    if lost:
        why = f": {reason}" if reason else ""
        found.append(f"{steps} of {steps + lost} steps are on disk, {lost} were lost{why}")
    elif reason:
        found.append(f"not all was written: {reason}")
    damaged = manifest.get("damaged")
    if damaged:
        named = "; ".join(str(line)[:_MOST_LETTERS] for line in damaged[:_MOST_NAMED])
        more = f"; and {len(damaged) - _MOST_NAMED} more" if len(damaged) > _MOST_NAMED else ""
        count = "1 file is" if len(damaged) == 1 else f"{len(damaged)} files are"
        found.append(f"{count} damaged or missing: {named}{more}")
    for rank in manifest.get("ranks") or ():
        number, attempt = rank.get("rank"), rank.get("attempt")
        place = f"rank {number}, attempt {attempt}" if attempt else f"rank {number}"
        found += [f"{place}: {text}" for text in losses(rank) if number or attempt]
    return found
