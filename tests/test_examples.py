"""The programs of examples/ run, and their runs hold what each of them is there to show."""

import json
import shutil
from pathlib import Path

import pytest

from analyzer.storage.run import Run, open_run
from tests.support.commands import run as run_python

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_there_are_seven() -> None:
    assert len([path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")]) == 7


def recorded(folder: Path, *words: str) -> Run:
    """Run a program in a folder; return the one run that it leaves there."""
    done = run_python(folder, *words)
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "runs").iterdir()
    run = open_run(path)
    assert run.manifest["status"] == "finished"
    return run


def from_outside(folder: Path, name: str, *options: str) -> Run:
    """Record a program that knows nothing of the recorder."""
    return recorded(folder, "-m", "analyzer", "record", *options, str(EXAMPLES / name))


def test_a_plain_loop_has_a_join_for_every_block_and_learns(tmp_path: Path) -> None:
    run = from_outside(tmp_path, "plain_loop.py")
    assert run.joins["shortcut"].tolist() == ["identity"] * 4
    losses = run.steps["loss"]
    assert losses.iloc[-5:].mean() < 0.5 * losses.iloc[:5].mean()


def test_accumulated_micro_batches_are_one_step(tmp_path: Path) -> None:
    run = recorded(tmp_path, str(EXAMPLES / "gradient_accumulation.py"), "runs/mine")
    assert run.steps["num_backward"].tolist() == [4] * 20
    assert run.steps["gradient_norm"].tolist() == pytest.approx(run.steps["my_norm"].tolist())
    assert run.steps["clip_factor"].min() < 1
    assert run.probe_metadata("noise")[0]["source"] == "micro-batches of the training"


def test_a_closure_is_one_step_for_each_update(tmp_path: Path) -> None:
    run = from_outside(tmp_path, "closure.py", "--probe", "paths")
    assert run.steps["num_backward"].tolist() == [1] * 30
    assert run.probe("paths")["length"].max() == len(run.joins) == 2


def test_a_language_model_has_two_joins_in_each_block(tmp_path: Path) -> None:
    run = recorded(tmp_path, str(EXAMPLES / "hugging_face.py"), "runs/gpt2")
    blocks = [name.partition("#")[0] for name in run.joins["name"]]
    assert blocks == [f"transformer.h.{k}" for k in (0, 0, 1, 1, 2, 2)]
    assert run.splits()["shortcut_share"].between(0, 2).all()


def test_two_networks_take_turns(tmp_path: Path) -> None:
    run = from_outside(tmp_path, "gan.py")
    assert len(run.steps) == 40
    assert {name.partition(".")[0] for name in run.layers["name"]} == {"generator", "discriminator"}


def test_a_notebook_records_reads_and_shows(tmp_path: Path) -> None:
    # A notebook runs in its own folder.
    shutil.copy(EXAMPLES / "notebook.ipynb", tmp_path)
    code = "from nbclient.cli import main; main(['notebook.ipynb', '--output=done.ipynb'])"
    run = recorded(tmp_path, "-c", code)
    assert len(run.steps) == 40
    cells = json.loads((tmp_path / "done.ipynb").read_text())["cells"]
    assert "<iframe" in str(cells[-1]["outputs"])
    assert "shortcut_share" in str([cell.get("outputs") for cell in cells])
    assert run.steps["error"].tolist() == pytest.approx(run.steps["loss"].pow(0.5).tolist())


def test_the_lessons_notebook_shows_what_it_says(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "lesson.ipynb", tmp_path)
    code = "from nbclient.cli import main; main(['lesson.ipynb', '--output=done.ipynb'])"
    done = run_python(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    plain, run = (open_run(tmp_path / "runs" / name) for name in ("lesson-plain", "lesson"))
    assert plain.steps["loss"].iloc[-1] > 2 > 1 > run.steps["loss"].iloc[-1]
    outputs = str(
        [cell.get("outputs") for cell in json.loads((tmp_path / "done.ipynb").read_text())["cells"]]
    )
    for found in (plain, run):
        norms = found.layer_stats(columns=["output_gradient_norm"], steps=[0])[
            "output_gradient_norm"
        ]
        assert f"{norms.iloc[0] / norms.iloc[-1]:.1e} times" in outputs
    assert "shortcut_share" in outputs


@pytest.mark.slow
def test_a_notebook_that_runs_again_takes_the_next_free_name(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "notebook.ipynb", tmp_path)
    code = "from nbclient.cli import main; main(['notebook.ipynb', '--output=done.ipynb'])"
    for _ in range(2):
        done = run_python(tmp_path, "-c", code)
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["notebook", "notebook-1"]
    outputs = [c.get("outputs") for c in json.loads((tmp_path / "done.ipynb").read_text())["cells"]]
    assert "recording into 'runs/notebook-1'" in str(outputs)
    for name in ("notebook", "notebook-1"):
        assert len(open_run(tmp_path / "runs" / name).steps) == 40
