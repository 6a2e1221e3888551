"""Pairs whose truth is known by construction: what a verdict says of each, and does not."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzer.analysis.verdict import verdict, verdict_on
from analyzer.opened import Run
from tests.support.pairs import BLOCKS, write_side

Side = dict[str, Any]
LAYERS = [0, 9]


def correlations(probe: str, correlation: float, spread: float = 0.0) -> Side:
    """A correlation at the stem (of gradients), or before the head (of activations)."""
    layers = {"layer": [0, 8, 9], "name": ["stem", "block3.1", "head"]}
    values = [correlation, correlation, 0.5]
    ends = {
        f"correlation_{k}": [v + d for v in values] for k, d in (("low", -spread), ("high", spread))
    }
    return {probe: layers | {"correlation": values} | ends}


def shattering(correlation: float, spread: float = 0.0) -> Side:
    return correlations("shattering", correlation, spread)


def collapse(correlation: float, spread: float = 0.0) -> Side:
    return correlations("forward_correlation", correlation, spread)


def jacobian(*values: float) -> Side:
    names, ones = ["network"] * len(values), list(values)
    columns = {"name": names, "rank_order": list(range(len(values))), "singular_value": ones}
    return {"jacobian": columns | {"lower_quartile": ones, "upper_quartile": ones}}


def conditions(*values: float) -> Side:
    """The condition numbers of some samples."""
    return jacobian(1.0, 1.0) | {"notes": {"condition_numbers": json.dumps({"network": values})}}


def counterfactual(intact: float, cut: float, rescaled: float) -> Side:
    """Decades that fall with the shortcuts, without, and without but rescaled."""
    rows = [(1.0, False, intact), (0.5, False, intact), (0.0, False, cut), (0.0, True, rescaled)]
    return {
        "counterfactual": {
            "layer": [layer for _ in rows for layer in LAYERS],
            "name": [name for _ in rows for name in ("stem", "head")],
            "skip_scale": [scale for scale, _, _ in rows for _ in LAYERS],
            "rescaled": [is_rescaled for _, is_rescaled, _ in rows for _ in LAYERS],
            "output_gradient_norm": [x for _, _, fall in rows for x in (10.0**-fall, 1.0)],
        }
    }


def lesion(*accuracies: float, loss: float = 0.0) -> Side:
    zeros = [0.0] * len(accuracies)
    return {
        "lesion": {
            "join": list(range(len(accuracies))),
            "loss": [loss] * len(accuracies),
            "loss_change": zeros,
            "accuracy": list(accuracies),
            "shortcut_loss": zeros,
            "shortcut_loss_change": zeros,
            "shortcut_accuracy": zeros,
        }
    }


def paths(*norms: float) -> Side:
    count = len(norms)
    return {
        "paths": {
            "length": list(range(count)),
            "num_paths": [1.0] * count,
            "gradient_norm": list(norms),
            "share": [1.0 / count] * count,
        }
    }


def sharp(ratio: float, limit: float = 20.0, *, adaptive: bool = False) -> Side:
    """A sharpness that many times what a step bears; of Adam the preconditioned one."""
    ours = {"sharpness": [ratio * limit], "threshold": [limit]}
    own = {f"preconditioned_{name}": value for name, value in ours.items()}
    others = {"sharpness": [3.0], "threshold": [None]} if adaptive else {key: [None] for key in own}
    rest = {"gradient_share": [None], "num_eigenvectors": [None]}
    return {"sharpness": (own if adaptive else ours) | others | rest}


@dataclass(frozen=True)
class Case:
    """A pair and its truth: statuses by claim, words that the sentence has, and has not."""

    name: str
    plain: Side = field(default_factory=dict)
    residual: Side = field(default_factory=dict)
    statuses: dict[str, str] = field(default_factory=dict)
    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()


def norms(p: float | list[float], r: float | list[float], *args: Any) -> tuple[Side, Side]:
    return {"decades": p}, {"decades": r}


HOLDS, FAILS, UNCLEAR = "holds", "fails", "unclear"
CASES = (
    # Norms along depth.
    Case("alike", statuses={"vanishing": FAILS, "exploding": FAILS, "gain": FAILS, "cliff": FAILS}),
    Case("vanishing", *norms(8.0, 0.1), {"vanishing": HOLDS, "gain": HOLDS}, ("Vanishing",)),
    Case("deep vanishing", *norms(30.0, 0.0), {"vanishing": HOLDS, "relative_gradient": HOLDS}),
    Case("vanishing in both", *norms(8.0, 8.0), {"vanishing": FAILS}, ("vanish in both",)),
    Case("vanishing less", *norms(20.0, 5.0), {"vanishing": HOLDS}, ("falls 20 decades",)),
    Case("3.43 against 2.99", *norms(3.43, 2.99), {"vanishing": FAILS}, never=("separate",)),
    Case("near the limit", *norms(2.6, 0.0), {"vanishing": UNCLEAR}, ("Unclear: vanishing",)),
    Case("below it", *norms(2.0, 0.0), {"vanishing": FAILS}, ("Not vanishing",)),
    Case(
        "residual vanishes", *norms(0.0, 6.0), {"vanishing": FAILS}, ("The residual net loses its",)
    ),
    Case(
        "residual vanishes, and has other merits",
        {"probes": shattering(0.00135)},
        {"decades": 6.0, "probes": shattering(0.0451) | counterfactual(6.0, 12.0, 6.0)},
        {"vanishing": FAILS, "shattering": HOLDS, "counterfactual": HOLDS},
        ("The residual net loses its norms: without shortcuts the gradient falls 0 decades",),
    ),
    Case(
        "the last digit of a limit",
        {"decades": 2.4996},
        {"share": [1.0, 1.0, 0.9898, 1.0], "probes": shattering(0.9996)},
        {"vanishing": UNCLEAR, "identity_start": FAILS},
        ("falls 2.4996 decades",),
    ),
    Case("exploding", *norms(-6.0, 0.0), {"exploding": HOLDS}, ("Exploding",), ("healthy",)),
    Case("exploding residual", *norms(0.0, -6.0), {"exploding": HOLDS, "vanishing": FAILS}),
    Case("exploding in both", *norms(-6.0, -6.1), {"exploding": FAILS}, ("explode in both",)),
    Case("opposite", *norms(6.0, -6.0), {"vanishing": HOLDS, "exploding": HOLDS}),
    Case(
        "vanishes at first",
        *norms([3.7, 0.0, 0.0, 0.0], 0.1),
        {"vanishing": HOLDS, "vanishing_median": FAILS, "vanishing_last": FAILS},
        ("Vanishing gradients", "step 0; then it recovers: median over steps 0 to 3 it"),
    ),
    Case(
        "explodes at first, then decays",
        *norms([-3.48, 0.5, 0.7, 0.8], 0.0),
        {"exploding": HOLDS, "exploding_last": FAILS},
        ("grows 3.48 decades", "step 0"),
        ("healthy",),
    ),
    Case("vanishes at last", *norms([0.0, 0.0, 0.0, 9.0], 0.0), {"vanishing": HOLDS}, ("step 3",)),
    Case(
        "a cliff",
        {"cliff": (5, 6.0)},
        {},
        {"cliff": HOLDS},
        ("block2.0", "6 decades"),
        ("healthy",),
    ),
    Case("a cliff in both", {"cliff": (5, 6.0)}, {"cliff": (5, 6.0)}, {"cliff": FAILS}, ("at bl",)),
    Case("a small cliff", {"cliff": (5, 1.0)}, {}, {"cliff": FAILS}),
    Case("steep, no cliff", *norms(24.0, 0.0), {"cliff": FAILS, "vanishing": HOLDS}),
    Case(
        "no gradient arrives", {"zero": True}, {}, {"vanishing": HOLDS, "relative_gradient": HOLDS}
    ),
    Case("scaled branches", {}, {"branch": 1e-4}, {"vanishing": FAILS, "exploding": FAILS}),
    Case("tiny branches", {}, {"branch": 1e-8}, {"exploding": FAILS, "cliff": FAILS}),
    # Losses.
    Case("a lower loss", {"losses": [2.3] * 4}, {}, {"training_loss": HOLDS}, ("ends lower",)),
    Case("as low", {}, {}, {"training_loss": FAILS}, never=("ends lower",)),
    Case("a higher loss", {}, {"losses": [2.3] * 4}, {"training_loss": FAILS}, ("not end lower",)),
    Case(
        "0.218 against 0.000117",
        {"losses": [2.3, 1.0, 0.5, 0.218]},
        {"losses": [2.3, 1.0, 0.5, 0.000117]},
        {"training_loss": HOLDS},
    ),
    Case(
        "both fitted",
        {"losses": [2.3, 1.0, 0.5, 4e-4]},
        {"losses": [2.3, 1.0, 0.5, 1e-4]},
        {"training_loss": FAILS},
    ),
    Case(
        "NaN",
        {"losses": [2.3, 1.0, math.nan, math.nan]},
        {},
        {"training_loss": "undefined"},
        ("not finite from step 2 on",),
    ),
    # Probes.
    Case(
        "not shattered: .575 and .991",
        {"probes": shattering(0.575)},
        {"probes": shattering(0.991)},
        {"shattering": FAILS},
        never=("shattered",),
    ),
    Case(
        "shattered: .00135 and .0451",
        {"probes": shattering(0.00135)},
        {"probes": shattering(0.0451)},
        {"shattering": HOLDS},
        ("shattered gradients (correlation 0.00135 against 0.0451)",),
    ),
    Case(
        "both shattered",
        {"probes": shattering(0.01)},
        {"probes": shattering(0.012)},
        {"shattering": FAILS},
    ),
    Case(
        "one sample says little of conditioning",
        {"probes": jacobian(1000.0, 1.0)},
        {"probes": jacobian(10.0, 1.0)},
        {"conditioning": UNCLEAR},
        ("Unclear: conditioning",),
    ),
    Case(
        "sixteen samples apart",
        {"probes": conditions(*[10.0**k for k in np.linspace(3, 4, 16)])},
        {"probes": conditions(*[10.0**k for k in np.linspace(0.5, 1.5, 16)])},
        {"conditioning": HOLDS},
        ("conditioning (condition number",),
    ),
    Case(
        "sixteen samples, a factor of two",
        {"probes": conditions(*[2 * 10.0**k for k in np.linspace(2, 4, 16)])},
        {"probes": conditions(*[10.0**k for k in np.linspace(2, 4, 16)])},
        {"conditioning": UNCLEAR},
    ),
    Case(
        "sixteen samples alike",
        {"probes": conditions(*[10.0**k for k in np.linspace(2, 2.2, 16)])},
        {"probes": conditions(*[10.0**k for k in np.linspace(2, 2.2, 16)])},
        {"conditioning": FAILS},
        never=("conditioning (",),
    ),
    Case(
        "inputs collapse",
        {"probes": collapse(0.99, 0.001)},
        {"probes": collapse(0.6, 0.01)},
        {"forward_collapse": HOLDS},
        ("forward collapse (activations of different inputs correlate by 0.99 against 0.6)",),
    ),
    Case(
        "inputs collapse in both",
        {"probes": collapse(0.99)},
        {"probes": collapse(0.98)},
        {"forward_collapse": FAILS},
    ),
    Case(
        "correlations within their intervals",
        {"probes": shattering(0.06, 0.05)},
        {"probes": shattering(0.3, 0.05)},
        {"shattering": UNCLEAR},
        ("Unclear: shattering",),
    ),
    Case(
        "an unconverged singular value",
        {"probes": jacobian(1000.0, math.nan)},
        {"probes": jacobian(10.0, 1.0)},
        {"conditioning": "undefined"},
    ),
    Case(
        "shortcuts keep the gradient",
        {},
        {"probes": counterfactual(0.1, 9.0, 7.0)},
        {"counterfactual": HOLDS},
        ("Shown by intervention", "falls 0.1 decades, and falls 9 decades with its shortcuts"),
    ),
    Case(
        "shortcuts do nothing for the norms",
        {},
        {"probes": counterfactual(0.1, 0.2, 0.1)},
        {"counterfactual": FAILS},
        ("no effect on the norms",),
    ),
    Case(
        "an effect of the scale alone",
        {},
        {"probes": counterfactual(0.1, 9.0, -0.2)},
        {"counterfactual": HOLDS},
        ("falls 9 decades with its shortcuts taken out (it grows 0.2 decades where",),
    ),
    Case(
        "no branch is needed",
        {},
        {"probes": lesion(0.9, 0.89, 0.9, 0.9)},
        {"lesion": HOLDS},
        never=("Without the branch",),
    ),
    Case(
        "a net that is not finite",
        {},
        {"probes": lesion(0.1, 0.1, 0.1, 0.1, loss=math.nan)},
        {"lesion": "undefined"},
    ),
    Case(
        "one branch is needed",
        {},
        {"probes": lesion(0.9, 0.4, 0.9, 0.9)},
        {"lesion": FAILS},
        ("Without the branch of block1 the accuracy of the net is 0.5 worse (step 3)",),
    ),
    Case("short paths", {}, {"probes": paths(4.0, 2.0, 1.0, 0.0, 0.0)}, {"path_length": HOLDS}),
    Case("long paths", {}, {"probes": paths(0.0, 0.0, 1.0, 2.0, 4.0)}, {"path_length": FAILS}),
    Case(
        "one training at the edge of stability",
        {"probes": sharp(1.02)},
        {"probes": sharp(0.3, 40.0)},
        {"edge_of_stability": HOLDS},
        ("At the edge of stability: the sharpness is 1.02 times what a step bears without",),
    ),
    Case(
        "Adam at the edge of stability, whatever the learning rates",
        {"probes": sharp(0.2), "lr": 0.02},
        {"probes": sharp(0.98, 3800.0, adaptive=True), "lr": 0.01},
        {"edge_of_stability": HOLDS},
        ("0.2 times what a step bears without shortcuts, 0.98 times with them (steps 2 to 3)",),
    ),
    Case(
        "far beyond the edge",
        {"probes": sharp(30.0)},
        {"probes": sharp(0.3)},
        {"edge_of_stability": HOLDS},
        ("Beyond the edge: the sharpness is 30 times",),
        ("At the edge",),
    ),
    Case(
        "flat enough",
        {"probes": sharp(0.3)},
        {"probes": sharp(0.1)},
        {"edge_of_stability": FAILS},
        never=("edge of stability",),
    ),
    Case(
        "one probe says little of an edge",
        {"probes": sharp(1.02), "losses": [2.3], "decades": [0.0]},
        {"probes": sharp(0.3), "losses": [2.3], "decades": [0.0]},
        {"edge_of_stability": UNCLEAR},
        ("Unclear: edge of stability",),
    ),
    Case(
        "near the edge",
        {"probes": sharp(0.9)},
        {"probes": sharp(0.1)},
        {"edge_of_stability": UNCLEAR},
        ("Unclear: edge of stability",),
    ),
    # What the shortcuts carry.
    Case("most of it", {}, {"share": 0.8}, {"shortcut_share": HOLDS}),
    Case("little of it", {}, {"share": 0.2}, {"shortcut_share": FAILS}),
    Case("an identity", {}, {"share": 1.0}, {"identity_start": HOLDS}, ("starts as an identity",)),
    Case(
        "an identity but for one block",
        {},
        {"share": [1.0, 1.0, 0.4, 1.0]},
        {"identity_start": FAILS},
        never=("starts as an identity",),
    ),
    Case(
        "scaled shortcuts are no identity",
        {},
        {"share": 1.0, "shortcut": "scaled"},
        {"identity_start": "not measured"},
    ),
    Case("a stream", {}, {"stream": 0.1}, {"stream": HOLDS}),
    Case("blocks that overwrite it", {}, {"stream": 3.0}, {"stream": FAILS}),
    # Of a twin shortcuts are zero, and each block adds infinitely much to them.
    Case(
        "a twin",
        {"residual": True, "skip_scale": 0.0, "stream": math.inf},
        {"stream": 0.1},
        {"stream": HOLDS},
        ("is a twin",),
    ),
    Case("slow first layer", {"update": 1e-5}, {}, {"first_update": HOLDS}),
    # What else can explain it.
    Case(
        "learning rates",
        {"losses": [2.3] * 4, "lr": 20.0},
        {"lr": 0.05},
        {"training_loss": UNCLEAR, "vanishing": FAILS},
        ("learning rate 20 without shortcuts, 0.05 with them (400 times)",),
    ),
    Case(
        "learning rates do not explain the first step",
        {"decades": 8.0, "lr": 20.0},
        {"lr": 0.05},
        {"vanishing": HOLDS},
        ("learning rate",),
    ),
    Case("widths", {"decades": 8.0, "width": 64}, {}, {"vanishing": UNCLEAR}, ("widths 64",)),
    Case(
        "normalization",
        {"decades": -8.0, "kind": "BatchNorm1d"},
        {},
        {"exploding": UNCLEAR},
        ("normalization BatchNorm1d",),
    ),
)


def recorded(folder: Path, case: Case) -> tuple[Run, Run]:
    return (
        write_side(folder / "plain", **{"residual": False} | case.plain),
        write_side(folder / "residual", residual=True, **case.residual),
    )


def same(query: Any, claim: Any) -> bool:
    want = claim.residual if claim.plain is None else (claim.plain, claim.residual)
    return np.allclose(np.array(query, float), np.array(want, float), rtol=1e-12, equal_nan=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_verdict_says_the_truth_of_a_pair_and_nothing_false(case: Case, tmp_path: Path) -> None:
    plain, residual = recorded(tmp_path, case)
    said = verdict(plain, residual)
    found = {claim.key: claim for claim in said.claims}
    assert {key: found[key].status for key in case.statuses} == case.statuses
    for words in case.says:
        assert words in said.sentence
    for words in (*case.never, "healthy"):
        assert words not in said.sentence
    for claim in said.claims:
        assert claim.text.startswith(claim.question)
        if claim.query:
            assert same(eval(claim.query, {"plain": plain, "residual": residual}), claim), claim.key


def test_the_pairs_are_more_than_forty_and_ask_every_question() -> None:
    asked = {key for case in CASES for key in case.statuses}
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)
    assert len(asked) >= 16


def test_a_residual_net_that_loses_its_norms_is_said_first(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "residual vanishes, and has other merits")
    assert verdict(*recorded(tmp_path, case)).headline.startswith(
        "The residual net loses its norms"
    )


def test_a_number_that_fails_is_not_written_as_the_limit(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "the last digit of a limit")
    claim = next(c for c in verdict(*recorded(tmp_path, case)).claims if c.key == "identity_start")
    assert "carry 0.9898 of the gradient" in claim.text
    assert "yes if it is 0.99 or more" in claim.text


def test_the_other_order_is_put_right_and_said(tmp_path: Path) -> None:
    plain, residual = recorded(tmp_path, Case("", *norms(8.0, 0.1)))
    right, turned = verdict(plain, residual), verdict(residual, plain)
    assert turned.sentence == right.sentence
    for one, other in zip(turned.claims, right.claims, strict=True):
        assert replace(one, query=other.query) == other
        # Whichever order the user types it in.
        for given in ((plain, residual), (residual, plain)):
            sides = dict(zip(("plain", "residual"), given, strict=True))
            assert not one.query or same(eval(one.query, sides), one)
    assert turned.note.startswith(
        "The runs came in the other order and were put right: plain plain"
    )
    assert not right.note


def seeds(folder: Path, falls: list[float], **residual: Any) -> tuple[list[Run], list[Run]]:
    pairs = [
        recorded(folder / str(k), Case("", {"decades": fall}, residual))
        for k, fall in enumerate(falls)
    ]
    return [p for p, _ in pairs], [r for _, r in pairs]


@pytest.mark.parametrize(
    ("falls", "status"),
    [
        ([5.0, 6.0, 8.0], HOLDS),
        ([5.0, 6.0, 0.0], UNCLEAR),
        ([0.0, 0.1, -0.1], FAILS),
        ([2.6, 2.7, 2.8], HOLDS),
        ([2.6, 2.6], UNCLEAR),
    ],
)
def test_over_seeds_a_claim_holds_where_all_are_beyond_the_limit(
    tmp_path: Path, falls: list[float], status: str
) -> None:
    plain, residual = seeds(tmp_path, falls)
    said = verdict(plain, residual)
    claim = next(claim for claim in said.claims if claim.key == "vanishing")
    assert claim.status == status
    assert claim.plain == pytest.approx(np.median(falls))
    assert claim.spread == {
        "plain": pytest.approx([min(falls), max(falls)]),
        "residual": pytest.approx([0.0, 0.0], abs=1e-12),
        "over": "seeds",
        "count": len(falls),
    }
    assert said.evidence["seeds"] == len(falls)
    assert f"Medians over {len(falls)} seeds." in said.sentence
    asked = eval(claim.query, {"plain": plain, "residual": residual})
    assert [p for p, _ in asked] == pytest.approx(falls)


def test_an_unclear_answer_says_what_settles_it_and_how_long_that_takes(tmp_path: Path) -> None:
    plain, residual = recorded(
        tmp_path, Case("", {"decades": 2.6, "seconds": 2.0}, {"seconds": 4.0})
    )
    claim = next(c for c in verdict(plain, residual).claims if c.key == "vanishing")
    assert "analyzer record --twin --seeds 3" in claim.text
    assert "Three seeds of both take about 18 s." in claim.text
    assert "). Too near to the limit. Three seeds would settle it" in claim.text
    assert "2.5 decades" in claim.text


def test_what_an_intervention_shows_stands_before_what_is_only_seen(tmp_path: Path) -> None:
    shown, seen = counterfactual(0.1, 9.0, 7.0), shattering(0.3) | conditions(*[10.0] * 16)
    others = shattering(0.01) | conditions(*[1e5] * 16)
    for decades, first in ((8.0, "Vanishing gradients"), (0.0, "Shown by intervention")):
        folder = tmp_path / first
        plain = write_side(folder / "p", residual=False, decades=decades, probes=dict(others))
        residual = write_side(folder / "r", residual=True, probes=shown | seen)
        sentence = verdict(plain, residual).sentence
        assert sentence.startswith(first)
        shattered = sentence.index("shattered gradients (")
        conditioned = sentence.index("conditioning (condition number")
        assert sentence.index("Shown by intervention") < min(shattered, conditioned)


def test_what_rounding_hides_and_what_collapses_in_both_is_said(tmp_path: Path) -> None:
    probes = conditions(*[1e7] * 16) | collapse(0.99)
    plain = write_side(tmp_path / "p", residual=False, probes=dict(probes))
    residual = write_side(
        tmp_path / "r", residual=True, probes=conditions(*[10.0] * 16) | collapse(0.95)
    )
    said = verdict(plain, residual).sentence
    assert "(condition number 1·10⁷ or more, hidden by rounding in float32, against 10)" in said
    assert "Inputs collapse in both: activations of different inputs correlate by 0.99" in said


def test_of_clipped_gradients_no_edge_is_known(tmp_path: Path) -> None:
    run = write_side(tmp_path / "r", residual=True, probes=sharp(1.02), clip=0.5)
    claim = next(c for c in verdict_on(run).claims if c.key == "edge_of_stability")
    assert claim.status == "not measured" and "gradients are clipped" in claim.text
    assert "edge_of_stability" not in [one.code for one in run.findings()]


def test_one_run_alone_is_said_to_be_at_the_edge_of_stability(tmp_path: Path) -> None:
    run = write_side(tmp_path / "r", residual=True, probes=sharp(1.02))
    said = verdict_on(run)
    claim = next(claim for claim in said.claims if claim.key == "edge_of_stability")
    assert (claim.status, claim.plain, claim.steps) == (HOLDS, None, (2, 3))
    assert "1.02 times the 20 from which on a step is unstable" in said.sentence
    assert eval(claim.query, {"residual": run}) == pytest.approx(claim.residual)


def test_joins_count_as_trunk_and_branches_do_not(tmp_path: Path) -> None:
    residual = write_side(tmp_path / "r", residual=True, decades=4.5, branch=1e-6)
    assert residual.trunk(0).num_places == 2 + BLOCKS
    plain = write_side(tmp_path / "p", residual=False, decades=4.5)
    assert plain.trunk(0).decades_fallen == pytest.approx(4.5)
    assert plain.trunk(0).span == pytest.approx(4.5)


def test_over_seeds_every_query_gives_the_numbers_of_every_pair(tmp_path: Path) -> None:
    plain, residual = [], []
    for k in range(3):
        probes = shattering(0.01 + 0.01 * k) | conditions(*[1000.0 + k] * 16) | collapse(0.9)
        probes |= sharp(1.0 + 0.1 * k)
        plain.append(
            write_side(
                tmp_path / f"p{k}",
                residual=False,
                decades=5.0 + k,
                update=1e-4 * (k + 1),
                cliff=(3, 1.0),
                losses=[2.3, 2.2, 2.2, 2.1 + 0.1 * k],
                probes=probes,
            )
        )
        probes = shattering(0.5) | conditions(*[10.0 + k] * 16) | collapse(0.5 + 0.1 * k)
        probes |= counterfactual(0.1, 9.0 + k, 7.0) | lesion(*[0.9 - 0.1 * k] * 4)
        probes |= paths(4.0, 2.0 + k, 1.0, 0.0, 0.0) | sharp(0.1 * (k + 1))
        shares = [0.6, 0.7 + 0.1 * k, 0.6, 0.6]
        residual.append(
            write_side(
                tmp_path / f"r{k}", residual=True, probes=probes, share=shares, stream=0.1 * (k + 1)
            )
        )
    said = verdict(plain, residual)
    measured = [claim for claim in said.claims if claim.query]
    alone = [
        {claim.key: claim for claim in verdict(*pair).claims}
        for pair in zip(plain, residual, strict=True)
    ]
    assert {claim.status for claim in said.claims} <= {"holds", "fails", "unclear"}
    assert len(measured) >= 16
    for claim in measured:
        values = np.array(eval(claim.query, {"plain": plain, "residual": residual}), float)
        middle = np.median(values, axis=0)
        assert len(values) == 3, claim.key
        assert same(middle, claim), claim.key
        for row, of_pair in zip(values, alone, strict=True):
            assert same(row, of_pair[claim.key]), claim.key
