"""One recording from its options to its last line: the run folder, the recorder, and the words."""

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

from analyzer.cli.signals import DeadlySignals
from analyzer.errors import AnalyzerError, RunExistsError, RunNotFoundError, StopTraining
from analyzer.launch import join, launch_of_process, rank_in
from analyzer.options import ZOO, RecordOptions

__all__ = [
    "PACKAGE_ROOT",
    "Session",
    "beside",
    "existing_run",
    "new_folder",
    "options_from",
    "options_text",
    "resumed_folder",
    "stem_of",
]

_SECONDS_BETWEEN_LOOKS = 5.0
_RECORDER = str(Path(__file__).parents[1] / "recording")
# From where another process imports the same analyzer.
PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


def options_text(options: RecordOptions) -> str:
    """Return options as the text that another process gets."""
    return json.dumps(asdict(options), default=str)


def options_from(text: str) -> RecordOptions:
    """Return the options in such a text."""
    fields: dict[str, Any] = json.loads(text)
    for name in ("args", "probe", "twin_words"):
        fields[name] = tuple(fields[name])
    for name in ("run", "runs_dir"):
        fields[name] = None if fields[name] is None else Path(fields[name])
    return RecordOptions(**fields)


def beside(run: Path, *words: object) -> Path:
    """Return a folder beside a run's that has further words in its name: ``plain``, a seed."""
    return run.with_name("-".join([run.name, *map(str, words)])) if words and run.name else run


def existing_run(run: Path) -> RunExistsError:
    """Return the error about a folder that holds something already."""
    return RunExistsError(
        f"run folder '{run}' exists; a recording needs a new one and never overwrites. Choose "
        "another --run, or leave it out for the next free name."
    )


def resumed_folder(options: RecordOptions) -> Path:
    """Return the folder of the run to be resumed; nothing heavy is imported for it.

    Raises:
        RunNotFoundError: If there is no such run.
    """
    asked, folder = Path(options.resume or ""), options.runs_dir
    known = {path.parent: path for path in folder.glob("*/run.json")}
    if options.resume == "latest" and known:
        return max(known, key=lambda run: str(_fields(known[run]).get("created")))
    for run in (asked, folder / asked):
        if (run / "run.json").is_file():
            return run
    raise RunNotFoundError(
        f"no run '{asked}' to resume: neither that folder nor '{folder / asked}' holds a run.json; "
        "`analyzer runs` lists the runs"
    )


def _fields(manifest: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(manifest.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _claimed(run: Path) -> Path:
    """Make the folder of a run, so that of two that start at once only one has it.

    The ranks of a launch share the folder that the first of them has made.

    Raises:
        RunExistsError: If it exists.
    """
    if not _is_taken_now(run):
        raise existing_run(run)
    return run


def _is_taken_now(run: Path) -> bool:
    """Whether the folder is this process's from now on: a new one, or that of its launch."""
    launch = launch_of_process()
    try:
        if launch is not None:
            return join(run, launch) is not None
        run.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError:
        pass  # a read-only folder: the recorder says so, and the training continues
    return True


def stem_of(options: RecordOptions) -> str:
    """Return how the names of the runs of a target begin."""
    name = options.target
    if name.startswith(ZOO):
        return name.removeprefix(ZOO)
    return name.rpartition(".")[2] if options.as_module else Path(name).stem or "run"


def new_folder(
    options: RecordOptions, others: Callable[[Path], Iterable[Path]] = lambda run: ()
) -> Path:
    """Make the folder of the options, or the next free ``<runs>/<target>-<k>``, at once.

    Args:
        options: Those of the recording.
        others: Returns the folders that must be free too, such as that of the run's twin.

    Returns:
        The folder; a missing one where it cannot be made.

    Raises:
        RunExistsError: If the folder of the options exists.
    """
    if options.run is not None:
        return _claimed(options.run)
    stem = stem_of(options)
    for k in itertools.count():
        path = options.runs_dir / f"{stem}-{k}"
        if not any(map(os.path.lexists, others(path))) and _is_taken_now(path):
            return path
    raise AssertionError


def _portable(argv: Sequence[str], working_folder: Path) -> list[str]:
    """Return a command line without absolute paths.

    A path inside the working folder becomes relative to it; any other becomes ``<path:n>``, the
    same number for the same path. ``--option=/path`` is treated like ``/path``.
    """
    numbers: dict[str, int] = {}

    def portable(word: str) -> str:
        option, equals, value = word.partition("=")
        if option.startswith("-") and equals:
            return f"{option}={portable(value)}"
        path = os.path.expanduser(word)
        if not os.path.isabs(path) and ".." not in Path(path).parts:
            return word
        whole = Path(os.path.normpath(working_folder / path))
        if whole.is_relative_to(working_folder):
            return whole.relative_to(working_folder).as_posix()
        return f"<path:{numbers.setdefault(str(whole), len(numbers))}>"

    return [portable(word) for word in argv]


class Session:
    """The run folder, the recorder, and what is said about them on stderr.

    Args:
        options: What was asked for.
        run: Folder of the run, made for it; None for the one of the options, or the next free one.

    Raises:
        RunExistsError: If the folder of the options exists.
    """

    def __init__(self, options: RecordOptions, run: Path | None = None) -> None:
        self.options = options
        if run is None and options.resume is not None:
            run = resumed_folder(options)
            if (launch := launch_of_process()) is not None:
                join(run, launch, resumes=True)
        if run is None:
            run = new_folder(options)
        self.run = run
        self.folder = Path(os.path.abspath(run))
        """The same, also when the program has gone to another working folder."""
        self.rank = rank_in(self.folder)
        self.recorder: Any = None
        self.last_words: list[str] = list(options.twin_words)
        self.signals = DeadlySignals(self._end_by_signal)
        self._has_warned = False
        self._scaling: Any = None
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS

    def new_recorder(self, model: Any, manifest: dict[str, Any]) -> Any:
        """Return a recorder with the options; it may end the training at a severe finding."""
        from analyzer.recording.recorder import Recorder

        given = self.options.of_recorder() | {"skip_scale": None}
        watch = self._stop_when_severe if self.options.fail_on is not None else None
        resume = self.options.resume
        if resume is not None:
            given["resume"] = str(self.folder)
        recorder = Recorder(
            model,
            self.folder if resume is None else None,
            manifest=manifest,
            warn=self.warn,
            watch=watch,
            exist="use",
            **given,
        )
        # Scripts also need the session's words about a scaling, and to be ended where it fails.
        if resume is not None:
            found = recorder.options
            kept = {name: getattr(found, name) for name in ("seed", "skip_scale", "rescale")}
            self.options = replace(self.options, **kept)
            recorder.options = replace(found, skip_scale=None, rescale=False)
        return recorder

    def start_scaling(self, model: Any, *, ends_program: bool) -> None:
        """Scale the shortcuts from now on, where that was asked for."""
        if self.options.skip_scale is None:
            return
        from analyzer.recording.skip_scaling import SkipScaling

        self._scaling = SkipScaling(
            self.options.skip_scale,
            model,
            rescales=self.options.rescale,
            ends_program=ends_program,
            on_problem=self.last_words.append,
        )
        self._scaling.start()

    def stop_scaling(self) -> None:
        """Scale no more shortcuts."""
        if self._scaling is not None:
            self._scaling.stop()

    def manifest(self, kind: str) -> dict[str, Any]:
        """Return what the manifest says about the command."""
        options = self.options
        target = ["-m", options.target] if options.as_module else [options.target]
        scaled = {"skip_scale": options.skip_scale, "rescaled": options.rescale}
        twins = {"twin_of": options.twin_of, "twin": options.twin_name}
        return {
            "kind": kind,
            "argv": _portable([*target, *options.args], Path.cwd()),
            "seed": options.seed,
            **(scaled if options.skip_scale is not None else {}),
            **{key: value for key, value in twins.items() if value is not None},
            **({} if options.point is None else {"point": dict(options.point)}),
        }

    def say(self, sentence: str) -> None:
        """Write a line to stderr, unless the user wants none."""
        if not self.options.quiet:
            sys.stderr.write(f"analyzer: {sentence}\n")
            sys.stderr.flush()

    def warn(self, sentence: str) -> None:
        """Say the first warning about storage at once, later ones at the end."""
        if self._has_warned:
            self.last_words.append(sentence)
        else:
            self._has_warned = True
            self.say(sentence)

    def result(self, status: str) -> list[str]:
        """Return what is on disk, what it cost, and the command that shows it."""
        if not self.folder.exists():
            return []
        recorder = self.recorder
        sentences = [] if recorder.training.failure is None else [recorder.training.failure]
        if not self.rank.leads():  # that one says it
            return sentences
        from analyzer.analysis.numerals import counted
        from analyzer.storage.run_json import losses

        counts, (found, manifest), place = recorder.counts, self._on_disk(), ""
        if (resumed := recorder.resumed) is not None:
            if resumed.first is None:
                return [f"nothing was recorded; {self.run} is as it was"]
            counts = counts | {"steps": max(0, counts["steps"] - resumed.first)}
            place = f"attempt {resumed.attempt} from step {resumed.first}, "
        lost = counts["steps"] - found
        if (failure := recorder.storage_failure) or lost > 0:
            manifest = {**manifest, "steps": found, "storage_error": failure, "lost_steps": lost}
        sentences += losses(manifest)
        steps = f"{found} of {counts['steps']} steps" if lost > 0 else counted(found, "step")
        sizes = ", ".join(counted(counts[f"{one}s"], one) for one in ("layer", "parameter"))
        share = recorder.overhead_seconds / max(recorder.seconds, 1e-9)
        size = sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file()) / 2**20
        if (ended := manifest.get("status", "no run.json")) != status:
            status = f"{status}, run.json says {ended}"
        return [
            *sentences,
            f"recorded {steps}, {sizes} into {self.run} ({place}{status}, "
            f"{recorder.seconds:.1f} s, {share:.0%} of it recording, {size:.1f} MiB); see it with: "
            f"analyzer show {self.run}",
        ]

    def _on_disk(self) -> tuple[int, dict[str, Any]]:
        """How many steps can be read, and the manifest; nothing where the run cannot be opened."""
        from analyzer.storage.run import open_run

        try:
            run = open_run(self.folder)
            resumed = self.recorder.resumed
            if resumed is None:
                return len(run.recorded_steps()), run.manifest
            rows = run.read("steps", "attempt", ranks="all")
            pairs = zip(rows["step"].to_pylist(), rows["attempt"].to_pylist(), strict=True)
            own = {step for step, attempt in pairs if attempt == resumed.attempt}
            return len(own), run.manifest
        except (AnalyzerError, OSError, ValueError):
            return 0, {}

    def is_severe(self) -> bool:
        """Whether the run has a finding that was to fail it; such findings are added to say."""
        severe = self._found_severe()
        self.last_words.extend(f"{finding.severity}: {finding.sentence}" for finding in severe)
        return bool(severe)

    def _found_severe(self) -> list[Any]:
        """The findings that were to fail the run, in what is on disk."""
        if self.options.fail_on is None or not self.folder.exists():
            return []
        from analyzer.analysis.findings import findings
        from analyzer.storage.run import open_run

        return [f for f in findings(open_run(self.folder)) if f.severity == self.options.fail_on]

    def _stop_when_severe(self, step: int) -> None:
        """Look at what is on disk every few seconds; end the training where it is bad enough."""
        if time.monotonic() < self._next_look:
            return
        severe: list[Any] = []
        with contextlib.suppress(Exception):  # a look that fails must not end the recording
            severe = self._found_severe()
        if severe:
            raise StopTraining(step + 1)
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS

    def _end_by_signal(self, number: int, frame: FrameType | None) -> None:
        """Bring the recording to its end, and say so, before this process dies of a signal."""
        self.end_now("interrupted", None, frame)

    def end_now(self, status: str, error: str | None, frame: FrameType | None) -> None:
        """Bring the recording to its end, and say so, before this process ends at once.

        Args:
            status: How the run ended.
            error: What went wrong, if anything.
            frame: What the program was doing.
        """
        if self.recorder is None:
            self.remove_empty_folder()
            return
        is_busy = False
        while frame is not None:
            is_busy |= frame.f_code.co_filename.startswith(_RECORDER)
            frame = frame.f_back
        self.recorder.interrupt(status, error, is_busy=is_busy)
        if not self.recorder.counts["steps"]:
            self.remove_run()
        if not self.options.quiet:
            lines = [f"analyzer: {sentence}\n" for sentence in self.result(status)]
            # Not through sys.stderr: a signal may have come in the middle of a write.
            os.write(2, "".join(lines).encode())

    def leave_to_other_process(self) -> None:
        """Record nothing of this session in this process, which was forked."""
        self.signals.stop()
        if self.recorder is not None:
            self.recorder.abandon()
            self.recorder = None

    def remove_run(self) -> None:
        """Leave nothing behind of a recording; what earlier attempts recorded stays."""
        if self.options.resume is None:
            self.rank.leave()

    def remove_empty_folder(self) -> None:
        """Leave nothing behind where nothing was recorded."""
        if self.rank.is_one_of_many:
            self.rank.leave()
        with contextlib.suppress(OSError):
            self.folder.rmdir()
