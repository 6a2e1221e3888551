"""Writes the lesson as one self-contained page that asks for nothing from the network."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import analyzer
from analyzer.figures.theme import DARK, LIGHT, Theme
from analyzer.lesson.practice import questions
from analyzer.lesson.scene import Scene
from analyzer.lesson.scenes import SCENES
from analyzer.lesson.steps import steps
from analyzer.lesson.words import GRADES, Question
from analyzer.reports.html import content_policy, plotly_bundle
from analyzer.reports.packing import packed

__all__ = ["lesson_html", "write_lesson"]

TEMPLATES = Path(__file__).parent / "templates"


def write_lesson(path: Path) -> None:
    """Write the lesson as one file; one that exists is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lesson_html()[0], encoding="utf-8", newline="\n")


def lesson_html(home: str | None = None) -> tuple[str, str]:
    """Return the lesson as the text of an HTML file, and its content security policy.

    Equal data give equal text.

    Args:
        home: Where the link to the dashboard leads; None for a page without one.

    Raises:
        AnalyzerError: If a table of the lesson is missing.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    css, js = ((TEMPLATES / f"lesson.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    bundle = plotly_bundle()
    scenes = {key: make() for key, make in SCENES.items()}
    asked = questions()
    content = {
        "scenes": {key: _shown(scene) for key, scene in scenes.items()},
        "palettes": {theme.name: _palette(theme) for theme in (LIGHT, DARK)},
    }
    policy = content_policy(css, js, bundle.sha256)
    text = environment.get_template("lesson.html.j2").render(
        version=analyzer.__version__,
        policy=policy,
        css=css,
        js=js,
        plotly=bundle.data,
        content=packed(content),
        steps=steps(),
        scenes=scenes,
        grades=[(grade, _numbered(asked, grade)) for grade in GRADES],
        num_questions=len(asked),
        home=home,
    )
    return text, policy


def _numbered(asked: tuple[Question, ...], grade: str) -> list[tuple[int, Question]]:
    return [(k, question) for k, question in enumerate(asked, 1) if question.grade == grade]


def _shown(scene: Scene) -> dict[str, Any]:
    """A scene as JSON values; its controls stand in the page itself."""
    return {
        "layout": dict(scene.layout),
        "controls": [control.key for control in scene.controls],
        "states": {key: asdict(state) for key, state in scene.states.items()},
    }


def _palette(theme: Theme) -> dict[str, str]:
    """The colors by the names that scenes use; those of runs as in every other figure."""
    colors = (theme.style(place).color for place in range(5))
    residual, plain, branch, half, other = colors
    return {
        "residual": residual,
        "plain": plain,
        "branch": branch,
        "half": half,
        "other": other,
        "text": theme.text,
        "faint": theme.faint,
        "grid": theme.grid,
    }
