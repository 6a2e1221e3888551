"""What a recording's target is called, and where its run goes."""

import itertools
from pathlib import Path

from analyzer.cli.record_options import RecordOptions, plain_folder

__all__ = ["free_folder", "run_stem"]


def run_stem(options: RecordOptions) -> str:
    """Return the first part of the name of a target's runs."""
    if options.target.startswith("zoo:"):
        return options.target.removeprefix("zoo:")
    if options.as_module:
        return options.target.rpartition(".")[2]
    return Path(options.target).stem or "run"


def free_folder(runs: Path, stem: str, *, has_twin: bool = False) -> Path:
    """Make the next free ``<runs>/<stem>-<k>``, at once, so that no other process takes it.

    Args:
        runs: Folder of the runs.
        stem: What the name begins with.
        has_twin: Whether the folder of the run's twin must be free too.

    Returns:
        The folder, made where it can be.
    """
    for k in itertools.count():
        path = runs / f"{stem}-{k}"
        if has_twin and plain_folder(path).exists():
            continue
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:
            pass  # a read-only folder: the recorder says so, and the training goes on
        return path
    raise AssertionError
