"""A plain and a residual run with everything in them, their story, and their report."""

from pathlib import Path

import pytest

from analyzer.reports.html import report_html
from analyzer.reports.paper import static_svg
from analyzer.reports.story import Story, story_of
from analyzer.storage.run import Run, open_run
from tests.support.full_run import write_full_pair, write_network_run


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the plain and of the residual run."""
    return write_full_pair(tmp_path_factory.mktemp("reported"))


@pytest.fixture(scope="session")
def runs(folders: tuple[Path, Path]) -> tuple[Run, Run]:
    """Both runs, opened."""
    return open_run(folders[0]), open_run(folders[1])


@pytest.fixture(scope="session")
def story(folders: tuple[Path, Path]) -> Story:
    """What a report tells of the pair."""
    return story_of(folders)


@pytest.fixture(scope="session")
def page(story: Story) -> str:
    """The report of the pair."""
    return report_html(story)


@pytest.fixture(scope="session")
def static_figures(story: Story) -> dict[str, str]:
    """Its figures as SVG, by their keys."""
    return {figure.key: static_svg(figure.drawn) for figure in story.figures}


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run whose report takes a second."""
    folder = tmp_path_factory.mktemp("small") / "small"
    return write_network_run(folder, has_shortcuts=True, blocks=3, steps=4, probes=False)


@pytest.fixture(scope="session")
def small(small_folder: Path) -> Story:
    """What a report tells of it."""
    return story_of([small_folder])


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of three seeds of a plain and of a residual net."""
    folder = tmp_path_factory.mktemp("seeds")
    return [
        write_network_run(
            folder / f"{kind}-{seed}",
            has_shortcuts=kind == "residual",
            blocks=3,
            steps=6,
            argv=[f"{kind}.py", "--seed", str(seed)],
            seed=seed,
        )
        for kind in ("plain", "residual")
        for seed in range(3)
    ]
