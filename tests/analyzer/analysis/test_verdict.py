import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import analyzer
from analyzer.analysis.claims import STATUSES, Claim
from analyzer.analysis.comparability import AlikeError
from analyzer.analysis.limits import LIMITS, limits_table
from analyzer.analysis.numerals import decades, number
from analyzer.analysis.statements import STATEMENTS, statements_table
from analyzer.analysis.verdict import Verdict, verdict, verdict_on
from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import PANELS
from analyzer.opened import Run
from tests.support.illnesses import Patient, built, record
from tests.support.nets import Deep, Training, train_net
from tests.support.pairs import write_side

Pair = tuple[Run, Run]


class ReZeroBlock(nn.Module):
    """``x + α·relu(linear(x))`` with α = 0 at first, or without ``x``."""

    def __init__(self, *, is_residual: bool) -> None:
        super().__init__()
        self.linear, self.relu = nn.Linear(32, 32), nn.ReLU()
        self.alpha = nn.Parameter(torch.zeros(()))
        self.is_residual = is_residual

    def forward(self, x: Tensor) -> Tensor:
        branch = self.alpha * self.relu(self.linear(x))
        return x + branch if self.is_residual else branch


def rezero(is_residual: bool) -> nn.Module:
    torch.manual_seed(0)
    blocks = (ReZeroBlock(is_residual=is_residual) for _ in range(8))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), *blocks, nn.Linear(32, 10))


def zoo_pair(plain: str, residual: str, lr: float = 0.02) -> Callable[[bool], Patient]:
    return lambda is_residual: Patient(built(residual if is_residual else plain), lr=lr, steps=25)


PAIRS: dict[str, Callable[[bool], Patient]] = {
    "default": zoo_pair("mlp20", "mlp20-residual"),
    "he": zoo_pair("mlp30-he", "mlp30-residual-he", lr=1e-10),
    "batch norm": zoo_pair("mlp20-batchnorm", "mlp20-residual-batchnorm"),
    "rezero": lambda is_residual: Patient(rezero(is_residual), lr=0.1),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """The four pairs, trained and recorded once."""
    folder = tmp_path_factory.mktemp("pairs")
    runs = {}
    for name, patient in PAIRS.items():
        paths = (record(patient(yes), folder / f"{name}-{yes}") for yes in (False, True))
        plain, residual = map(analyzer.open_run, paths)
        runs[name] = plain, residual
    return runs


def by_key(said: Verdict) -> dict[str, Claim]:
    return {claim.key: claim for claim in said.claims}


def numbers(claim: Claim) -> Any:
    """What the query of a claim must give."""
    return claim.residual if claim.plain is None else (claim.plain, claim.residual)


def forms(value: float) -> set[str]:
    """How a sentence may write a number, or decades."""
    return {number(abs(value)), decades(value).split()[0]}


def asked(claim: Claim, plain: Any, residual: Any) -> Any:
    """What the query gives to a user who types it."""
    return eval(claim.query, {"plain": plain, "residual": residual})


def test_four_pairs_get_four_different_verdicts(pairs: dict[str, Pair]) -> None:
    sentences = [verdict(*pair).sentence for pair in pairs.values()]
    assert len({sentence.partition("(")[0] for sentence in sentences}) == 4
    assert not any("healthy" in sentence for sentence in sentences)


def test_without_norm_and_with_the_default_initialization_gradients_vanish(
    pairs: dict[str, Pair],
) -> None:
    said = verdict(*pairs["default"])
    assert said.sentence.startswith("Vanishing gradients separate the two: without shortcuts the")
    assert by_key(said)["vanishing"].status == "holds"
    assert by_key(said)["vanishing"].plain > 6
    assert abs(by_key(said)["vanishing"].residual) < 1.5


def test_without_norm_and_with_hes_initialization_the_residual_net_explodes(
    pairs: dict[str, Pair],
) -> None:
    claims = by_key(said := verdict(*pairs["he"]))
    assert said.sentence.startswith("Exploding gradients separate the two: without shortcuts the")
    assert (claims["vanishing"].status, claims["exploding"].status) == ("fails", "holds")
    assert claims["exploding"].residual > 3 > abs(claims["exploding"].plain)


def test_with_batch_norm_it_says_not_vanishing_and_what_was_not_measured(
    pairs: dict[str, Pair],
) -> None:
    claims = by_key(said := verdict(*pairs["batch norm"]))
    assert said.sentence.startswith("Not vanishing: without shortcuts the gradient")
    assert claims["vanishing"].status == "fails"
    assert claims["training_loss"].status == "holds"
    assert f"The loss ends lower with shortcuts: {number(claims['training_loss'].plain)} without"
    assert "Not measured: shattering, conditioning, forward collapse" in said.sentence


def test_rezero_starts_as_an_identity_and_its_twin_gets_no_gradient(
    pairs: dict[str, Pair],
) -> None:
    claims = by_key(said := verdict(*pairs["rezero"]))
    assert said.sentence.startswith("Vanishing gradients separate the two: without shortcuts the")
    assert "It starts as an identity: its shortcuts carry 1 of the gradient" in said.sentence
    assert claims["identity_start"].residual == 1
    assert claims["relative_gradient"].plain == 0
    assert claims["vanishing"].plain == math.inf
    starts = {by_key(verdict(*pairs[k]))["identity_start"].status for k in ("default", "he")}
    assert starts == {"fails"}


def test_forty_layers_with_batch_norm_explode_by_1_2_a_layer_at_step_0_and_recover(
    tmp_path: Path,
) -> None:
    """Yang et al. (2019): √(π/(π − 1)) = 1.21 a layer, at a width of 256; then they recover."""
    plain, residual = (
        analyzer.open_run(
            train_net(
                Training(
                    Deep(40, shortcuts=yes, norm=nn.BatchNorm1d, gain=2.0, width=256),
                    lr=0.01,
                    steps=20,
                ),
                tmp_path / str(yes),
            )
        )
        for yes in (False, True)
    )
    claims = by_key(said := verdict(plain, residual))
    exploding, last = claims["exploding"], claims["exploding_last"]
    rate = 10 ** (exploding.plain / 41)  # from the last of 42 layers with weights to the first
    assert rate == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), rel=0.02)
    assert (exploding.status, exploding.steps, last.status) == ("holds", (0,), "fails")
    assert last.steps[0] == 19 and abs(last.plain) < 1.5
    start = "Exploding gradients separate the two: without shortcuts the gradient grows "
    start += f"{number(exploding.plain)} decades from"
    assert said.sentence.startswith(start)
    assert f"({number(rate)} a layer)" in said.sentence
    assert "(step 0; then it recovers: median over steps 0 to 19 it grows" in said.sentence
    assert f"at step 19 and 15 it grows {number(last.plain)} decades without" in said.sentence
    (finding,) = [one for one in plain.findings() if one.code == "explodes_at_first"]
    well = int(finding.sentence.partition("It recovers: at step ")[2].partition(" ")[0])
    assert f"{number(rate)} per layer with weights" in finding.sentence
    assert plain.trunk(well).decades_grown < 1.5 < plain.trunk(well - 1).decades_grown


@pytest.mark.parametrize("name", PAIRS)
def test_the_query_beside_each_claim_gives_its_numbers(pairs: dict[str, Pair], name: str) -> None:
    found = [claim for claim in verdict(*pairs[name]).claims if claim.query]
    assert len(found) >= 7
    for claim in found:
        assert asked(claim, *pairs[name]) == numbers(claim), claim.key
        assert any(form in claim.text for form in forms(claim.residual))


def test_a_residual_run_alone_is_told_what_its_shortcuts_do(pairs: dict[str, Pair]) -> None:
    run = pairs["default"][1]
    said = verdict_on(run)
    found = by_key(said)
    assert {"depth", "shortcut_share", "identity_start", "stream"} <= set(found)
    assert "vanishing" not in found and "training_loss" not in found
    assert said.sentence.startswith("From the last layer to the first the gradient")
    assert found["depth"].status == "holds"
    for claim in said.claims:
        if claim.query:
            assert eval(claim.query, {"residual": run}) == numbers(claim), claim.key


def test_a_plain_run_alone_is_refused(pairs: dict[str, Pair]) -> None:
    with pytest.raises(AnalyzerError, match="no shortcuts that carry something; expected a resid"):
        verdict_on(pairs["default"][0])


@pytest.mark.parametrize("name", ["default", "batch norm"])
@pytest.mark.parametrize("side", [0, 1])
def test_two_alike_are_refused_with_both_names(
    pairs: dict[str, Pair], name: str, side: int
) -> None:
    one, other = pairs[name][side], pairs["he"][side]
    with pytest.raises(AlikeError, match=f"'{one.name}' and '{other.name}' all have .* compare"):
        verdict(one, other)


def test_a_twin_is_plain_and_the_note_says_how_it_was_made(tmp_path: Path) -> None:
    residual = write_side(tmp_path / "r", residual=True)
    for rescaled, words in ((True, "initialized again"), (False, "kept their scale")):
        twin = write_side(tmp_path / words, residual=True, skip_scale=0.0, rescale=rescaled)
        said = verdict(twin, residual)
        assert said.note.startswith("The plain run is a twin with every shortcut multiplied by 0;")
        assert words in said.note
        assert "its shortcuts alone cause what differs" in said.sentence
    partly = write_side(tmp_path / "p", residual=True, skip_scale={"block0": 0.0})
    with pytest.raises(AlikeError):
        verdict(partly, residual)


def test_shortcuts_that_a_script_multiplies_by_0_carry_nothing(tmp_path: Path) -> None:
    zero = write_side(tmp_path / "z", residual=True, share=0.0, shortcut="scaled")
    residual = write_side(tmp_path / "r", residual=True, shortcut="scaled")
    assert verdict(zero, residual).claims
    with pytest.raises(AlikeError):
        verdict(zero, write_side(tmp_path / "p", residual=False))


def test_differences_are_found_in_the_folders(tmp_path: Path) -> None:
    plain = write_side(
        tmp_path / "p",
        residual=False,
        lr=0.2,
        losses=[1.0] * 5,
        batch=64,
        width=8,
        kind="LayerNorm",
        seed=1,
        first_batch="a",
        optimizers=[{"name": "SGD", "momentum": 0.9}],
    )
    residual = write_side(
        tmp_path / "r", residual=True, first_batch="b", optimizers=[{"name": "Adam"}]
    )
    found = {one.what: (one.plain, one.residual) for one in verdict(plain, residual).differences}
    assert found == {
        "learning rate": (0.2, 0.1),
        "optimizer": ("SGD momentum 0.9", "Adam"),
        "steps": (5, 4),
        "batch size": (64, 32),
        "first batch": ("a", "b"),
        "widths": ("8", "16"),
        "depth": (2, 10),
        "normalization": ("LayerNorm", "none"),
        "seed": (1, 0),
    }
    assert not verdict(
        write_side(tmp_path / "q", residual=False), write_side(tmp_path / "s", residual=True)
    ).differences


def test_a_run_that_failed_or_holds_nothing_is_not_judged(tmp_path: Path) -> None:
    plain = write_side(tmp_path / "p", residual=False, losses=[])
    said = verdict(plain, write_side(tmp_path / "r", residual=True))
    assert said.sentence.startswith("Not judged as a whole: p holds no gradient of a layer.")
    assert {claim.status for claim in said.claims if claim.query == ""} == {"not measured"}


def test_what_was_not_recorded_is_not_measured_and_says_how(tmp_path: Path) -> None:
    pair = write_side(tmp_path / "p", residual=False), write_side(tmp_path / "r", residual=True)
    claims = by_key(verdict(*pair))
    missing = {key for key, claim in claims.items() if claim.status == "not measured"}
    assert {"shattering", "conditioning", "lesion", "path_length", "counterfactual"} <= missing
    assert "`analyzer probe p jacobian --replay`" in claims["conditioning"].text
    assert all(claims[key].query == "" and claims[key].residual is None for key in missing)


def test_unequal_numbers_of_seeds_are_refused(tmp_path: Path) -> None:
    run = write_side(tmp_path / "p", residual=False)
    with pytest.raises(ValueError, match="got 1 plain and 2 residual runs; expected pairs"):
        verdict(run, [run, run])


def test_json_has_the_form_of_the_contract(tmp_path: Path) -> None:
    pair = write_side(tmp_path / "p", residual=False), write_side(tmp_path / "r", residual=True)
    said = verdict(*pair).as_json()
    assert list(said) == ["sentence", "note", "differences", "evidence", "claims"]
    assert said["evidence"] == {"seeds": 1, "samples": 32, "batches": 1, "steps": 4}
    for claim in said["claims"]:
        assert list(claim) == [
            *("key", "text", "status", "plain", "residual", "spread", "steps", "reference"),
            *("query", "panel"),
        ]
        assert claim["status"] in STATUSES


def test_every_statement_is_whole_and_documented() -> None:
    assert len({statement.key for statement in STATEMENTS}) == len(STATEMENTS)
    panels = {panel.key for panel in PANELS}
    for one in STATEMENTS:
        assert (
            f"| `{one.key}` | {one.question} | {one.compared} | {one.needs} |" in statements_table()
        )
        assert one.question.endswith("?") and one.reference and one.compared.startswith("yes")
        assert one.panel in panels or one.key == "forward_collapse"
    for name, one in LIMITS.items():
        assert math.isfinite(one.value) and f"| `{name}` |" in limits_table()
