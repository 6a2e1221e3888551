"""The words of the lesson: each number is that of the data, each program prints what is said."""

import contextlib
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyzer.analysis.numerals import number, percent
from analyzer.errors import AnalyzerError
from analyzer.lesson import tables
from analyzer.lesson.page import lesson_html
from analyzer.lesson.practice import questions
from analyzer.lesson.scenes import SCENES
from analyzer.lesson.steps import steps
from analyzer.lesson.tables import DATA, at, table
from analyzer.lesson.words import GRADES, Choice, Snippet
from tests.support.commands import run

STEPS = {step.key: step for step in steps()}
QUESTIONS = questions()
STATES = {key: make().states for key, make in SCENES.items()}
PROGRAMS = [
    *(snippet for step in steps() for snippet in step.snippets),
    *(question.proof for question in QUESTIONS if question.proof),
]


def rows(name: str, **values: object) -> pd.DataFrame:
    """The rows of a shipped table that have these values, read anew."""
    found = pd.read_parquet(DATA / f"{name}.parquet")
    for key, value in values.items():
        found = found[[one == value for one in found[key]]]
    return found


def right(choices: tuple[Choice, ...]) -> Choice:
    (one,) = [choice for choice in choices if choice.is_right]
    return one


def test_ten_steps_have_a_question_a_figure_and_a_takeaway() -> None:
    assert list(STEPS) == list(SCENES)
    assert len(STEPS) == 10
    for step in STEPS.values():
        assert step.question.endswith(("?", ")"))
        assert right(step.choices)
        assert all(choice.why for choice in step.choices)
        assert len(step.choices) >= 3
        assert step.sentence
        assert step.takeaway


def test_questions_are_in_three_grades_and_each_answer_is_shown() -> None:
    assert len(QUESTIONS) >= 15
    assert [q.grade for q in QUESTIONS] == sorted((q.grade for q in QUESTIONS), key=GRADES.index)
    assert {q.grade for q in QUESTIONS} == set(GRADES)
    for question in QUESTIONS:
        assert right(question.choices)
        assert all(choice.why for choice in question.choices)
        assert question.proof or question.figure
        if question.figure:
            assert question.figure[1] in STATES[question.figure[0]]


@pytest.mark.parametrize("snippet", PROGRAMS, ids=range(len(PROGRAMS)))
def test_each_program_prints_what_is_said(snippet: Snippet) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet.code, "snippet", "exec"), {})
    assert printed.getvalue() == snippet.prints


def test_answers_that_are_numbers_are_what_their_programs_print() -> None:
    answers = {q.text: (right(q.choices).text, q.proof.prints) for q in QUESTIONS if q.proof}
    for shown in ("2.0", "10"):
        assert (shown, f"{shown}\n") in answers.values()
    assert ("About 0.000001", "0.0000010\n") in answers.values()
    # 1,000 is 1,024 rounded.
    assert ("About 1,000 times", "1024.0\n") in answers.values()


@pytest.mark.parametrize("net", ["plain", "residual"])
def test_degradation_says_the_mean_over_seeds(net: str) -> None:
    text = STATES["degradation"][net].text
    for depth in (4, 8, 16, 32):
        losses = rows("degradation", net=net, depth=depth)["final_loss"].tolist()
        assert len(losses) == 3
        assert f"{number(sum(losses) / 3)} at {depth}" in text


def test_the_deep_plain_net_is_worse_and_the_residual_one_is_not() -> None:
    mean = {
        (net, depth): np.mean(rows("degradation", net=net, depth=depth)["final_loss"])
        for net in ("plain", "residual")
        for depth in (4, 32)
    }
    assert mean["plain", 32] > 10 * mean["plain", 4]
    assert mean["residual", 32] < 1.1 * mean["plain", 4]
    step = STEPS["degradation"]
    assert number(mean["plain", 32]) in right(step.choices).why
    risen = f"{number(mean['residual', 4])} with 4 layers to {number(mean['residual', 32])}."
    assert risen in step.sentence
    assert f"near {number(math.log(10))}, the loss of guessing" in step.sentence
    assert abs(mean["plain", 32] - math.log(10)) < 0.05


@pytest.mark.parametrize("net", ["plain", "residual"])
@pytest.mark.parametrize(("depth", "scale"), [(5, 0.2), (20, 0.7), (40, 1.0), (40, 1.2)])
def test_products_are_those_of_the_table(net: str, depth: int, scale: float) -> None:
    state = STATES["product"][f"{net}|{depth}|{scale}"]
    first = rows("factors", net=net, depth=depth, scale=scale, layer=1)["ratio"].item()
    last = rows("factors", net=net, depth=depth, scale=scale, layer=depth)["ratio"].item()
    assert last == 1
    gain = math.exp(math.log(first) / (depth - 1))
    assert f"receives {number(first)} times the last one's gradient" in state.text
    assert f"a factor of {number(gain)} in each layer" in state.text
    if net == "plain":
        power = math.prod([scale] * (depth - 1))
        assert f"{number(scale)} multiplied {depth - 1} times is {number(power)}" in state.text
        # What the sentence of the step says: the gradient follows the power of the scale.
        assert gain == pytest.approx(scale, rel=0.1)
    else:
        assert gain > 0.9  # the + 1 stands for itself, however small the branch
        if (depth, scale) == (20, 0.7):
            assert f"{number(first)} times over 20 layers" in STEPS["product"].takeaway


def test_splits_are_those_of_the_table_and_add_up() -> None:
    for row in rows("splits").itertuples():
        state = STATES["backward"][f"{row.step}|{row.join + 1}"]
        for value in (
            row.shortcut_gradient_norm,
            row.branch_gradient_norm,
            row.fork_gradient_norm,
            row.cosine,
        ):
            assert number(value) in state.text
        assert f"share of it is {percent(row.shortcut_share)}." in state.text
        assert state.numbers["fork"] == number(row.fork_gradient_norm)
        whole = math.sqrt(
            row.shortcut_gradient_norm**2
            + row.branch_gradient_norm**2
            + 2 * row.cosine * row.shortcut_gradient_norm * row.branch_gradient_norm
        )
        assert whole == pytest.approx(row.fork_gradient_norm, rel=1e-4)
    shares = rows("splits", step=0)["shortcut_share"]
    assert f"{percent(shares.min())} to {percent(shares.max())}" in STEPS["backward"].takeaway
    # "Almost at right angles" at the first step.
    assert rows("splits", step=0)["cosine"].abs().max() < 0.1


def test_blocks_add_what_the_table_says() -> None:
    for step, state in STATES["forward"].items():
        found = rows("splits", step=int(step))
        ratios = [
            b / s for b, s in zip(found.branch_output_norm, found.shortcut_output_norm, strict=True)
        ]
        assert f"between {percent(min(ratios))} and {percent(max(ratios))}" in state.text
        if step == "0":
            assert percent(min(ratios)) in STEPS["forward"].sentence
            assert percent(max(ratios)) in STEPS["forward"].sentence


def test_paths_are_counted_and_weighed() -> None:
    for step, state in STATES["paths"].items():
        found = rows("paths", step=int(step)).sort_values("length")
        assert found["num_paths"].tolist() == [math.comb(14, k) for k in range(15)]
        norms = found["gradient_norm"].tolist()
        length = sum(k * norm for k, norm in enumerate(norms)) / sum(norms)
        assert f"the effective length is {number(length)}." in state.text
        assert f"have {percent(sum(norms[:4]) / sum(norms))} of the gradient norms" in state.text
        assert f"{percent(sum(math.comb(14, k) for k in range(4)) / 2**14)} of all" in state.text
        assert number(length) in STEPS["paths"].takeaway
        assert percent(sum(norms[:4]) / sum(norms)) in STEPS["paths"].takeaway
    assert right(STEPS["paths"].choices).text == f"{2**14:,}"


def test_cutting_is_that_of_the_table() -> None:
    for key, state in STATES["counterfactual"].items():
        step, scale = key.split("|")
        found = rows("counterfactual", step=int(step), skip_scale=float(scale), rescaled=False)
        by_depth: dict[int, float] = {}
        for row in found.itertuples():
            by_depth[row.depth] = max(by_depth.get(row.depth, 0), row.output_gradient_norm)
        ratio = by_depth[min(by_depth)] / by_depth[max(by_depth)]
        assert f"receives {number(ratio)} times" in state.text
        if key in ("0|1.0", "0|0.0"):
            first = by_depth[min(by_depth)]
            assert all(number(first) in c.why for c in STEPS["counterfactual"].choices)


def test_twins_are_those_of_the_table() -> None:
    for step, state in STATES["twins"].items():
        for net in ("plain", "residual"):
            found = rows("layers", net=net, step=int(step)).sort_values("depth")
            norms = found["output_gradient_norm"].tolist()
            assert number(norms[0] / norms[-1]) in state.text
            assert number(rows("steps", net=net, step=int(step))["loss"].item()) in state.text
    tail = {net: np.mean(rows("steps", net=net)["loss"][-20:]) for net in ("plain", "residual")}
    said = f"{number(tail['plain'])} without and {number(tail['residual'])} with"
    assert said in STEPS["twins"].sentence
    losses = rows("steps", net="residual").set_index("step")["loss"]
    peak = f"reaches {number(losses.max())} at step {losses.idxmax()}."
    assert peak in STEPS["twins"].sentence
    assert losses.idxmax() < 180  # on the way, not in the mean before
    norms = rows("layers", net="plain", step=0).sort_values("depth")["output_gradient_norm"]
    assert f"receives {number(norms.iloc[0] / norms.iloc[-1])} times the" in (
        right(STEPS["twins"].choices).why
    )
    assert all(number(tail["plain"]) in choice.why for choice in STEPS["twins"].choices)
    assert abs(tail["plain"] - math.log(10)) < 0.05


def test_landscapes_are_those_of_the_table() -> None:
    spans = []
    for net, state in STATES["landscape"].items():
        losses = rows("landscape", net=net)["loss"]
        assert f"between {number(losses.min())} and {number(losses.max())}" in state.text
        assert number(at("landscape", "loss", net=net, alpha=0.0, beta=0.0)) in state.text
        spans.append(number(losses.max() - losses.min()))
    assert all(span in right(STEPS["landscape"].choices).why for span in spans)
    plain = rows("landscape", net="plain")["loss"]
    between = f"between {number(plain.min())} and {number(plain.max())} everywhere"
    assert sum(between in choice.why for choice in STEPS["landscape"].choices) == 2


def test_options_add_the_parameters_of_their_projections() -> None:
    added = {"A": 0, "B": 16 * 32 + 32 * 64, "C": 0}
    added["C"] = 3 * 16**2 + (16 * 32 + 2 * 32**2) + (32 * 64 + 2 * 64**2)
    for option, state in STATES["shapes"].items():
        found = rows("shapes", option=option)
        assert f"{found['num_parameters'].iloc[0]:,} parameters" in state.text
        if added[option]:
            assert f"{added[option]:,} more than option A" in state.text
        drawn = [block for trace in state.data for block in trace["x"]]
        assert sorted(drawn) == list(range(1, 10))


def test_what_shortcuts_do_not_explain_is_so_in_the_table() -> None:
    ratio, first, final = {}, {}, {}
    for net, state in STATES["others"].items():
        norms = rows("others_layers", net=net).sort_values("depth")["output_gradient_norm"]
        losses = rows("others_steps", net=net).sort_values("step")["loss"]
        ratio[net] = norms.iloc[0] / norms.iloc[-1]
        first[net], final[net] = losses.iloc[0], np.mean(losses[-30:])
        for value in (ratio[net], first[net], final[net]):
            assert number(value) in state.text
    assert (
        ratio["plain"] < 1e-6 < 1e-3 < min(ratio["plain, batch norm"], ratio["plain, He weights"])
    )
    assert final["residual, He weights"] > 2 > 1 > final["plain, He weights"]
    assert first["residual"] > first["plain"]
    choices = " ".join(choice.why for choice in STEPS["others"].choices)
    for value in (
        ratio["plain, batch norm"],
        final["plain, batch norm"],
        final["plain, He weights"],
        final["residual, He weights"],
    ):
        assert number(value) in STEPS["others"].takeaway
    for value in (
        ratio["plain, batch norm"],
        ratio["plain"],
        first["residual, He weights"],
        final["residual, He weights"],
        final["plain, He weights"],
        first["residual"],
        first["plain"],
    ):
        assert number(value) in choices


def test_questions_quote_the_table() -> None:
    text = " ".join(question.text for question in QUESTIONS)
    plain = rows("layers", net="plain", step=0).sort_values("depth")["output_gradient_norm"]
    share = rows("splits", step=0, join=0)["shortcut_share"].item()
    mean = rows("degradation", net="plain", depth=32)["final_loss"].mean()
    for value in (plain.iloc[0], plain.iloc[-1], mean):
        assert number(value) in text
    assert f"shortcut share {percent(share)}" in text


def test_the_data_is_small_and_a_missing_table_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 2e6
    monkeypatch.setattr(tables, "DATA", Path("nowhere"))
    with pytest.raises(AnalyzerError, match=r"nothing\.parquet is missing .* make lesson-data"):
        table("nothing")
    with pytest.raises(KeyError, match="2 rows of steps"):
        at("steps", "loss", step=0)


class Links(HTMLParser):
    """Every address that a page may ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "action")]


def test_the_command_writes_one_small_file(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "analyzer", "report", "--lesson", "-o", "lesson.html")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "lesson.html"
    assert file.stat().st_size < 3e6
    text = file.read_text(encoding="utf-8")
    assert text == lesson_html()[0]
    links = Links()
    links.feed(text)
    assert links.found
    assert all(link.startswith("#") for link in links.found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--lesson", "somerun"), "--lesson was asked for together with the run 'somerun'"),
        (("--lesson", "-o", "."), "-o '.' is a folder"),
        ((), "no RUN was named; expected one or more, latest, or --lesson"),
    ],
)
def test_wrong_calls_get_a_sentence(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run(tmp_path, "-m", "analyzer", "report", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_texts_are_in_plain_words() -> None:
    texts = json.dumps([repr(step) for step in steps()] + [repr(q) for q in QUESTIONS])
    assert not re.search(r"\b(anew|skip|so many|goes on)\b", texts)
