import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import analyzer
from analyzer.analysis.claims import STATEMENTS, Claim, statements_table
from analyzer.analysis.numerals import decades, number
from analyzer.analysis.sentences import THRESHOLDS
from analyzer.analysis.verdict import Verdict, verdict
from analyzer.figures.catalog import PANELS
from analyzer.opened import Run
from analyzer.storage.parts import write_table
from analyzer.storage.rows import probe_table
from tests.support.illnesses import Patient, built, record
from tests.support.runs import layer_row, write_run

Pair = tuple[Run, Run]
_NUMBER = re.compile(r"(?<![\w.])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:·10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?")


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


def chain(gain: float, layers: int = 9) -> list[float]:
    return [gain ** (layers - 1 - k) for k in range(layers)]


def probe(run: Path, probe_name: str, step: int, /, **columns: list[Any]) -> None:
    """Write what a probe measured at one step."""
    file = run / "probes" / probe_name / f"step-{step:012d}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_table(file, probe_table(probe_name, columns, {}))


def written(path: Path, gain: float, losses: list[float], **changes: Any) -> Path:
    """A run with this gain whose units are never dead."""
    layers = [layer_row(i, f"layers.{i}", output_shape=[8, 64]) for i in range(9)]
    return write_run(path, losses, [chain(gain)] * len(losses), layers=layers, **changes)


def probed_pair(folder: Path, gains: tuple[float, float] = (1.0, 1.0)) -> Pair:
    """Two written runs with every probe."""
    join = {"join": 0, "name": "block", "operation": "add", "shortcut": "identity"}
    join |= {"branch_layers": ["layers.1"], "shortcut_layers": []}
    plain = written(folder / "plain", gains[0], [2.0, 2.0, 1.9])
    residual = written(folder / "residual", gains[1], [2.0, 0.8, 0.4], joins=[join])
    for run, correlation, smallest in ((plain, 0.02, 0.001), (residual, 0.6, 0.5)):
        probe(run, "shattering", 0, layer=[0, 8], name=["a", "b"], correlation=[correlation, 1.0])
        names = ["block", "network", "network"]
        values = [9.0, 2.0, smallest]
        probe(run, "jacobian", 0, name=names, rank_order=[0, 0, 1], singular_value=values)
    probe(residual, "paths", 0, length=[0], num_paths=[1.0], gradient_norm=[1.0], share=[1.0])
    probe(
        residual,
        "paths",
        2,
        length=[0, 1, 2, 3, 4],
        num_paths=[1.0, 4.0, 6.0, 4.0, 1.0],
        gradient_norm=[2.0, 1.0, 1.0, 0.0, 0.0],
        share=[0.5, 0.25, 0.25, 0.0, 0.0],
    )
    probe(residual, "lesion", 2, join=[0], loss=[0.41], loss_change=[0.01], accuracy=[0.9])
    return analyzer.open_run(plain), analyzer.open_run(residual)


def test_four_pairs_get_four_different_verdicts(pairs: dict[str, Pair]) -> None:
    sentences = [verdict(*pair).sentence for pair in pairs.values()]
    headlines = {sentence.partition(",")[0] for sentence in sentences}
    assert len(headlines) == 4


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
    assert said.sentence.startswith("Not vanishing: gradients explode with the shortcuts, not")
    assert (claims["vanishing"].status, claims["exploding"].status) == ("fails", "holds")
    assert claims["exploding"].residual > 3 > abs(claims["exploding"].plain)


def test_with_batch_norm_it_says_not_vanishing_and_names_what_differs(
    pairs: dict[str, Pair],
) -> None:
    claims = by_key(said := verdict(*pairs["batch norm"]))
    assert said.sentence.startswith("Not vanishing: gradient norms are healthy in both")
    assert (claims["vanishing"].status, claims["exploding"].status) == ("fails", "fails")
    assert claims["training_loss"].status == "holds"
    assert f"The loss ends lower with shortcuts: {number(claims['training_loss'].plain)} without"
    assert "Shattering and conditioning not measured." in said.sentence


def test_rezero_starts_as_an_identity_and_its_twin_gets_no_gradient(
    pairs: dict[str, Pair],
) -> None:
    claims = by_key(said := verdict(*pairs["rezero"]))
    assert said.sentence.startswith("Without shortcuts no gradient reaches the first layer")
    assert "starts as an identity: its shortcuts carry 1 of the gradient" in said.sentence
    assert claims["identity_start"].residual == 1
    assert claims["relative_gradient"].plain == 0
    assert {verdict(*pairs[k]).claims[5].status for k in ("default", "he")} == {"fails"}


@pytest.mark.parametrize("name", PAIRS)
def test_the_query_beside_each_claim_gives_its_numbers(pairs: dict[str, Pair], name: str) -> None:
    measured = [claim for claim in verdict(*pairs[name]).claims if claim.query]
    assert len(measured) >= 7
    for claim in measured:
        assert asked(claim, *pairs[name]) == numbers(claim), claim.key
        assert any(form in claim.text for form in forms(claim.residual))


def test_the_numbers_of_the_sentence_are_those_of_claims(pairs: dict[str, Pair]) -> None:
    for pair in pairs.values():
        said = verdict(*pair)
        known = {"0"}
        for claim in said.claims:
            known |= {f for x in (claim.plain, claim.residual) if x is not None for f in forms(x)}
        found = _NUMBER.findall(said.sentence)
        assert found
        assert set(found) <= known


def test_claims_of_probes_carry_their_numbers_and_queries(tmp_path: Path) -> None:
    pair = probed_pair(tmp_path)
    claims = by_key(verdict(*pair))
    assert numbers(claims["path_length"]) == pytest.approx((0 * 2 + 1 + 2) / 4)
    assert numbers(claims["shattering"]) == (0.02, 0.6)
    assert numbers(claims["conditioning"]) == pytest.approx((2000.0, 4.0))
    assert numbers(claims["lesion"]) == 0.01
    for key in ("path_length", "shattering", "conditioning", "lesion"):
        assert claims[key].status == "holds", key
        assert asked(claims[key], *pair) == numbers(claims[key])


def test_a_healthy_pair_with_probes_is_told_what_differs_instead(tmp_path: Path) -> None:
    sentence = verdict(*probed_pair(tmp_path)).sentence
    assert sentence.startswith("Not vanishing: gradient norms are healthy in both")
    assert (
        "What differs instead: shattered gradients (correlation 0.02 against 0.6), "
        "conditioning (condition number 2000 against 4)." in sentence
    )
    assert "not measured" not in sentence


@pytest.mark.parametrize(
    ("gains", "headline"),
    [
        ((0.1, 1.0), "Vanishing gradients separate the two"),
        ((0.1, 0.2), "Gradients vanish in both"),
        ((10.0, 1.0), "Not vanishing but exploding gradients separate the two"),
        ((10.0, 10.0), "Not vanishing: gradients explode in both"),
        ((1.0, 10.0), "Not vanishing: gradients explode with the shortcuts"),
        ((1.0, 0.1), "Gradients vanish with the shortcuts"),
        ((0.1, 10.0), "Shortcuts turn vanishing gradients into exploding ones"),
        ((0.6, 1.0), "Not vanishing: gradient norms stay within bounds"),
    ],
)
def test_the_headline_is_what_the_gains_say(
    tmp_path: Path, gains: tuple[float, float], headline: str
) -> None:
    assert verdict(*probed_pair(tmp_path, gains)).sentence.startswith(headline)


def test_what_was_not_recorded_is_not_measured_and_says_how(tmp_path: Path) -> None:
    pair = [analyzer.open_run(written(tmp_path / name, 1.0, [1.0])) for name in "ab"]
    claims = by_key(verdict(*pair))
    missing = {key for key, claim in claims.items() if claim.status == "not measured"}
    assert {"shattering", "conditioning", "lesion", "path_length", "shortcut_share"} <= missing
    assert "record both runs with --probe jacobian" in claims["conditioning"].text
    assert all(claims[key].query == "" and claims[key].residual is None for key in missing)


def test_a_probe_that_found_nothing_is_not_measured(tmp_path: Path) -> None:
    paths = [written(tmp_path / name, 1.0, [1.0]) for name in "ab"]
    for path in paths:
        probe(path, "jacobian", 0, name=[], rank_order=[], singular_value=[])
        probe(path, "lesion", 0, join=[], loss=[], loss_change=[], accuracy=[])
        probe(path, "paths", 0, length=[], num_paths=[], gradient_norm=[], share=[])
        # Modules inside compiled code have names, and are no layers.
        probe(path, "shattering", 0, layer=[None], name=["0"], correlation=[0.5])
    claims = by_key(verdict(*map(analyzer.open_run, paths)))
    for key in ("conditioning", "lesion", "path_length", "shattering"):
        assert claims[key].status == "not measured", key


@pytest.mark.parametrize("norms", [[0.0, 0.0], [math.nan, 1.0]])
def test_paths_that_carry_no_number_are_not_measured(tmp_path: Path, norms: list[float]) -> None:
    pair = probed_pair(tmp_path)
    shares = {"num_paths": [1.0, 1.0], "share": [math.nan, math.nan]}
    probe(pair[1].path, "paths", 3, length=[0, 1], gradient_norm=norms, **shares)
    claims = by_key(verdict(pair[0], analyzer.open_run(pair[1].path)))
    assert claims["path_length"].status == "not measured"


def test_a_loss_that_is_not_finite_is_kept(tmp_path: Path) -> None:
    plain = analyzer.open_run(written(tmp_path / "a", 1.0, [2.0, math.nan]))
    residual = analyzer.open_run(written(tmp_path / "b", 1.0, [2.0, 0.5]))
    claim = by_key(verdict(plain, residual))["training_loss"]
    assert math.isnan(claim.plain)
    assert claim.status == "holds"
    assert "NaN without them, 0.5 with them" in claim.text


def test_several_seeds_show_their_median_and_spread(tmp_path: Path) -> None:
    gains = (0.1, 0.2, 0.3)
    runs = [probed_pair(tmp_path / str(gain), (gain, 1.0)) for gain in gains]
    plain, residual = [p for p, _ in runs], [r for _, r in runs]
    said = verdict(plain, residual)
    claim = by_key(said)["vanishing"]
    falls = [-8 * math.log10(gain) for gain in gains]
    assert claim.plain == pytest.approx(falls[1])
    assert claim.plain_spread == pytest.approx((falls[2], falls[0]))
    assert said.sentence.startswith("Over 3 seeds (medians, with ranges): Vanishing")
    assert "falls 5.59 (4.18 to 8) decades" in said.sentence
    assert "It holds in 3 of 3 seeds." in claim.text
    values = asked(claim, plain, residual)
    assert [a for a, _ in values] == pytest.approx(falls)


def test_seeds_that_disagree_are_said_to(tmp_path: Path) -> None:
    runs = [probed_pair(tmp_path / str(gain), (gain, 1.0)) for gain in (0.1, 0.15, 1.0)]
    said = verdict([p for p, _ in runs], [r for _, r in runs])
    assert "they disagree, gradients vanish in 2" in said.sentence
    assert by_key(said)["vanishing"].status == "fails"


def test_unequal_numbers_of_seeds_are_refused(tmp_path: Path) -> None:
    plain, residual = probed_pair(tmp_path)
    with pytest.raises(ValueError, match="got 1 plain and 2 residual runs; expected pairs"):
        verdict(plain, [residual, residual])


@pytest.mark.parametrize(("rescaled", "words"), [(True, "initialized again"), (False, "kept")])
def test_the_note_says_how_the_twin_was_made(tmp_path: Path, rescaled: bool, words: str) -> None:
    run = written(tmp_path / "a", 1.0, [1.0], skip_scale=0.0, rescale=rescaled)
    note = verdict(analyzer.open_run(run), analyzer.open_run(run)).note
    assert note.startswith("The plain run is a twin with every shortcut multiplied by 0; its")
    assert words in note


def test_every_statement_is_whole_and_documented() -> None:
    assert len({statement.key for statement in STATEMENTS}) == len(STATEMENTS)
    for one in STATEMENTS:
        assert f"| `{one.key}` | {one.holds_when} | {one.needs} |" in statements_table()
        assert one.text.endswith(".") and one.reference and one.remedy
        assert one.panel in {panel.key for panel in PANELS}
    for threshold in THRESHOLDS.values():
        assert math.isfinite(threshold.value) and len(threshold.reason) > 15
