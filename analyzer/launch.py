"""The processes of one launch, and how they share a run folder without a word to one another.

`torchrun` starts a process for each *rank*; where one dies, it may start all of them again, in a
new *attempt*. Each process finds the folder of its launch, its rank and its attempt by what stands
under ``ranks/`` in it:

- ``a<attempt>.json``: which launch began the attempt, as which restart, with how many ranks;
- ``a<attempt>.leader``: the rank that writes what all share;
- ``a<attempt>.first``: the number of its first step, where it is not the first;
- ``a<attempt>.r<rank>.json``: that this rank takes part, and later how it fared.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "RANKS",
    "Launch",
    "Rank",
    "create_once",
    "join",
    "launch_of_process",
    "newest_attempt",
    "rank_in",
    "restarts",
    "url_of",
]

RANKS = "ranks"
_ATTEMPT = re.compile(r"a(\d{1,5})\.json")
# What a file system without hard links says.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_LOCAL = ("", "localhost", "127.0.0.1", "::1", "0.0.0.0")
_PATIENCE_SECONDS, _POLL_SECONDS = 10.0, 0.005
_SHARED_NAMES = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "MASTER_ADDR", "MASTER_PORT")

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)


def url_of(path: Any) -> str | None:
    """Return the URL in a text, or in a path that was made of one; None for a path of a folder."""
    match = _URL.fullmatch(os.fspath(path)) if isinstance(path, str | Path) else None
    if match is None:
        return None
    # A path has one slash where the URL had two.
    slashes = ":///" if match[1] in ("file", "local") else "://"
    return f"{match[1]}{slashes}{match[2].rstrip('/')}"


@dataclass(frozen=True)
class Launch:
    """One of several processes that were started together.

    Args:
        key: The same for all of them, and after a restart.
        rank: Its number.
        world_size: How many there are.
        restart: How often they were started again.
        is_unique: Whether no other launch can have that key.
    """

    key: str
    rank: int
    world_size: int
    restart: int = 0
    is_unique: bool = True


class Rank:
    """What one process writes in a run folder.

    Args:
        folder: Folder of the run.
        number: Its rank.
        attempt: How often the training was begun before, here.
        world_size: Processes of its launch; 1 for one that was started alone.
    """

    def __init__(
        self, folder: Path, number: int = 0, attempt: int = 0, world_size: int = 1
    ) -> None:
        self.folder, self.number, self.attempt = folder, number, attempt
        self.world_size = world_size
        self._leads: bool | None = None if self.is_one_of_many else number == 0

    @property
    def is_one_of_many(self) -> bool:
        """Whether other processes may write into the folder, too."""
        return self.world_size > 1

    def file(self, ending: str) -> Path:
        """Return the path of a file of this rank and attempt."""
        return self.folder / RANKS / f"a{self.attempt}.r{self.number}.{ending}"

    @property
    def has_led(self) -> bool:
        """Whether it was found to lead."""
        return self._leads is True

    def leads(self) -> bool:
        """Whether it writes what all ranks share: rank 0, or the first to ask where there is none.

        Others ask only when they have something to write: by then rank 0 is there, if at all.
        """
        if self._leads is None:
            path = self.folder / RANKS / f"a{self.attempt}.leader"
            with contextlib.suppress(OSError, ValueError):
                path.parent.mkdir(parents=True, exist_ok=True)
                is_first = create_once(path, f"{self.number}\n")
                self._leads = is_first or int(path.read_text(encoding="utf-8")) == self.number
        return self._leads is True

    def first_step(self) -> int | None:
        """Return where this attempt begins, as rank 0 has found; None where that is for us to find.

        All ranks are at their first backward pass then, so that the others wait no longer than
        they would for its gradients.
        """
        until = time.monotonic() + _PATIENCE_SECONDS
        while self.is_one_of_many and self.number > 0 and time.monotonic() < until:
            with contextlib.suppress(OSError, ValueError):
                return int(self._first.read_text(encoding="utf-8"))
            time.sleep(_POLL_SECONDS)
        return None

    def note_first_step(self, step: int) -> None:
        """Tell the other ranks where this attempt begins."""
        if self.is_one_of_many and self.number == 0:
            with contextlib.suppress(OSError):
                create_once(self._first, f"{step}\n")

    @property
    def _first(self) -> Path:
        return self.folder / RANKS / f"a{self.attempt}.first"

    @property
    def is_restart(self) -> bool:
        """Whether the attempt before this one was of the same launch."""
        attempts = (self.attempt, self.attempt - 1)
        keys = [_read(self.folder / RANKS / f"a{n}.json").get("key") for n in attempts]
        return keys[0] is not None and keys[0] == keys[1]

    def measures(self) -> bool:
        """Whether it measures the probes, on its own batch: one rank does, no others have to."""
        return not self.is_one_of_many or self.leads()

    def leave(self) -> None:
        """Remove the folder in which this rank recorded nothing, unless others are still there."""
        if not self.is_one_of_many:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for path in self.file("*").parent.glob(self.file("*").name):
            path.unlink(missing_ok=True)
        others = list((self.folder / RANKS).glob(f"a{self.attempt}.r*.json"))
        if not others and not (self.folder / "steps").exists():
            shutil.rmtree(self.folder, ignore_errors=True)


_joined: dict[tuple[int, Path], Rank] = {}


def rank_in(folder: Path, number: int = 0, attempt: int = 0) -> Rank:
    """Return what this process is in a folder that it has joined; else one that is alone there."""
    path = Path(os.path.abspath(folder))
    return _joined.get((os.getpid(), path)) or Rank(path, number, attempt)


def restarts(folder: Path) -> bool:
    """Whether this process goes on with what its launch has recorded in a folder before."""
    return rank_in(folder).attempt > 0 and (folder / "run.json").is_file()


def launch_of_process(*, by_environment: bool = True) -> Launch | None:
    """Return the launch that this process is one of several processes of; None where it is alone.

    Args:
        by_environment: Whether the variables ``RANK`` and ``WORLD_SIZE`` that launchers set say
            so, too, and not only a process group that the program has initialized.
    """
    found = _of_group() or (_of_environment() if by_environment else None)
    if found is None:
        return None
    is_elastic = "TORCHELASTIC_RUN_ID" in os.environ
    num_local = os.environ.get("LOCAL_WORLD_SIZE")
    if num_local is None:
        is_local = os.environ.get("MASTER_ADDR", "") in _LOCAL
    else:
        is_local = num_local == str(found[1])
    # The processes of one machine have one parent, which no other launch has.
    parts = [_parent()] if is_local else [os.environ.get(name, "") for name in _SHARED_NAMES]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    restart = _number("TORCHELASTIC_RESTART_COUNT") or 0
    return Launch(key, *found, restart, is_unique=is_elastic and is_local)


def _of_group() -> tuple[int, int] | None:
    distributed: Any = sys.modules.get("torch.distributed")
    try:
        if distributed.is_available() and distributed.is_initialized():
            found = distributed.get_rank(), distributed.get_world_size()
            return found if found[1] > 1 and found[0] >= 0 else None
    except Exception:  # not there, or not whole yet
        pass
    return None


def _of_environment() -> tuple[int, int] | None:
    rank, world_size = _number("RANK"), _number("WORLD_SIZE")
    if rank is None or world_size is None or not 0 <= rank < world_size or world_size < 2:
        return None
    return rank, world_size


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None


def _parent() -> str:
    """The process that started this one, told apart from later ones with that number."""
    parent, began = os.getppid(), ""
    with contextlib.suppress(OSError, IndexError):
        text = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8", errors="replace")
        began = text.rpartition(")")[2].split()[19]
    return f"{parent} {began}"


def create_once(path: Path, text: str) -> bool:
    """Write a new file, whole from the first moment; return False where there is one already."""
    hidden = path.with_name(f".{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        hidden.write_text(text, encoding="utf-8")
        try:
            os.link(hidden, path)  # never made over a file that is there
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink()
    return True


def newest_attempt(folder: Path) -> int:
    """Return the number of the last attempt in a run folder; -1 where there is none."""
    names = os.listdir(folder / RANKS) if (folder / RANKS).is_dir() else []
    numbers = [int(match[1]) for match in map(_ATTEMPT.fullmatch, names) if match]
    manifest = _read(folder / "run.json")
    if manifest:
        attempt = manifest.get("attempt")
        numbers.append(attempt if type(attempt) is int else 0)
    return max(numbers, default=-1)


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def join(folder: Path, launch: Launch, *, resumes: bool = False) -> Rank | None:
    """Take part in the run of a folder, which the first process of a launch makes.

    Args:
        folder: Folder of the run.
        launch: What this process is one of.
        resumes: Whether the folder may be that of an earlier launch.

    Returns:
        What this process is there; None where the folder is another's.

    Raises:
        OSError: If nothing can be written there.
    """
    folder = Path(os.path.abspath(folder))
    if (os.getpid(), folder) in _joined:
        return None
    mine = {name: asdict(launch)[name] for name in ("key", "restart", "world_size")}
    if not os.path.lexists(folder):
        _make(folder, mine)
    while True:
        attempt = newest_attempt(folder)
        found = _read(folder / RANKS / f"a{attempt}.json")
        if not resumes and (found.get("key") != launch.key or _is_another(folder, found, launch)):
            return None
        rank = Rank(folder, launch.rank, attempt, launch.world_size)
        if found == mine and create_once(rank.file("json"), "{}\n"):
            break
        (folder / RANKS).mkdir(exist_ok=True)
        create_once(folder / RANKS / f"a{attempt + 1}.json", json.dumps(mine) + "\n")
    if launch.rank == 0:
        rank.leads()
    _joined[os.getpid(), folder] = rank
    return rank


def _is_another(folder: Path, found: dict[str, Any], launch: Launch) -> bool:
    """Whether an earlier launch may have had the same key: then its run has ended."""
    is_restart = launch.restart > (found.get("restart") or 0)
    status = _read(folder / "run.json").get("status", "running")
    return not launch.is_unique and not is_restart and status != "running"


def _make(folder: Path, attempt: dict[str, Any]) -> None:
    """Make the folder with the file of its first attempt in it, unless another does."""
    hidden = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    (hidden / RANKS).mkdir(parents=True)
    (hidden / RANKS / "a0.json").write_text(json.dumps(attempt) + "\n", encoding="utf-8")
    try:
        hidden.rename(folder)
    except OSError:
        shutil.rmtree(hidden, ignore_errors=True)
        if not folder.is_dir():
            raise
