"""Planes that are asked for by words, on a loss whose every value is known."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analyzer.probes import HeldBatch
from analyzer.probes.landscape import measure, methods
from analyzer.probes.landscape.planes import LandscapeRequest, drawn


class Weights(nn.Module):
    """Two tensors of weights that are their own output."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor([values[:2]], dtype=torch.float64))
        self.second = nn.Parameter(torch.tensor(values[2:], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first.flatten(), self.second]) * x


def squared(output: Tensor, target: object) -> Tensor:
    return output.square().sum()


def held(values: list[float]) -> HeldBatch:
    return HeldBatch(Weights(values), torch.ones(1, dtype=torch.float64), None, squared)


def state(values: list[float]) -> dict[str, Tensor]:
    return dict(Weights(values).state_dict())


# All in the plane of the first two axes through (1, 1, 1), but for the last, which is 1 off it.
CHECKPOINTS = {
    0: state([4, 1, 1]),
    3: state([2, 3, 1]),
    5: state([0, 0, 2]),
    9: state([1, 1, 1]),
}


def rows(measurement) -> np.ndarray:
    return np.column_stack([measurement.columns[name] for name in ("alpha", "beta", "loss")])


def test_a_line_leads_from_the_model_to_the_checkpoint():
    request = LandscapeRequest(plane="0", mode="exact")
    found = drawn(held([1, 1, 1]), request, step=9, checkpoints=CHECKPOINTS)
    alphas, betas, losses = rows(found).T
    assert len(alphas) == 81
    assert (betas == 0).all()
    np.testing.assert_allclose(losses, (1 + 3 * alphas) ** 2 + 2, rtol=1e-12)
    at_zero, at_one = losses[alphas == 0], losses[alphas == 1]
    assert (at_zero.item(), at_one.item()) == (3, 18)  # the losses of the model, the checkpoint
    assert "trajectory" not in found.metadata


def test_a_plane_goes_through_three_checkpoints_and_all_are_placed_in_it():
    request = LandscapeRequest(plane="0,3", mode="exact", grid="21", range="-1:1,0:2")
    found = drawn(held([1, 1, 1]), request, step=9, checkpoints=CHECKPOINTS)
    a, b, losses = rows(found).T
    assert (a.min(), a.max(), b.min(), b.max()) == (-1, 1, 0, 2)
    np.testing.assert_allclose(losses, (1 + 3 * a + b) ** 2 + (1 + 2 * b) ** 2 + 1, rtol=1e-12)
    places = np.array(json.loads(found.metadata["trajectory"]))
    # (0, 0, 2) − (1, 1, 1) = (−1, −1, 1): −1/6 of (3, 0, 0), −1/2 of (1, 2, 0), and 1 beside them.
    expected = [[0, 1, 0], [3, 0, 1], [5, -1 / 6, -1 / 2], [9, 0, 0]]
    np.testing.assert_allclose(places, expected, atol=1e-12)
    residuals = json.loads(found.metadata["trajectory_residuals"])
    np.testing.assert_allclose(residuals, [0, 0, 1 / 3**0.5, 0], atol=1e-7)


def test_the_plane_of_a_trajectory_holds_what_numpy_says_and_every_checkpoint_is_inside():
    request = LandscapeRequest(plane="trajectory", mode="exact", grid="15")
    found = drawn(held([1, 1, 1]), request, step=9, checkpoints=CHECKPOINTS)
    steps, a, b = np.array(json.loads(found.metadata["trajectory"])).T
    ways = np.array([[3, 0, 0], [1, 2, 0], [-1, -1, 1], [0, 0, 0]], dtype=float)
    _, sizes, axes = np.linalg.svd(ways, full_matrices=False)
    shares = json.loads(found.metadata["variance_explained"])
    np.testing.assert_allclose(shares, sizes[:2] ** 2 / (sizes**2).sum(), rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.column_stack([a, b])), np.abs(ways @ axes[:2].T))
    assert steps.tolist() == [0, 3, 5, 9]
    left = np.linalg.norm(ways - ways @ axes[:2].T @ axes[:2], axis=1)
    residuals = np.array(json.loads(found.metadata["trajectory_residuals"]))
    np.testing.assert_allclose(residuals * np.linalg.norm(ways, axis=1), left, atol=1e-7)
    alphas, betas, losses = rows(found).T
    assert alphas.min() < a.min() < a.max() < alphas.max()
    assert betas.min() < b.min() < b.max() < betas.max()
    assert losses[(alphas == 0) & (betas == 0)].item() == 3


def test_the_plane_of_a_trajectory_knows_nothing_of_later_checkpoints():
    later = {**CHECKPOINTS, 20: state([50, 7, -3])}
    request = LandscapeRequest(plane="trajectory", mode="exact", grid="5")
    found = drawn(held([1, 1, 1]), request, step=9, checkpoints=later)
    steps = [row[0] for row in json.loads(found.metadata["trajectory"])]
    assert steps == [0, 3, 5, 9]


@pytest.mark.parametrize(
    ("plane", "message"),
    [
        ("7", "there is no checkpoint of step 7; expected one of 0, 3, 5, 9"),
        ("0,9", "goes through the checkpoints of the steps 9 and 0, 9; expected all of them to"),
        ("trajectory", "span no plane"),
    ],
)
def test_a_plane_that_there_is_not_is_refused(plane, message):
    checkpoints = {0: CHECKPOINTS[0], 9: CHECKPOINTS[9]} if plane == "trajectory" else CHECKPOINTS
    request = LandscapeRequest(plane=plane)
    with pytest.raises(ValueError, match=message):
        drawn(held([1, 1, 1]), request, step=9, checkpoints=checkpoints)


def test_a_checkpoint_with_nan_is_named_before_a_plane_is_sought():
    broken = {**CHECKPOINTS, 3: state([2, float("nan"), 1])}
    request = LandscapeRequest(plane="trajectory")
    with pytest.raises(ValueError, match="checkpoint number 1 holds weights that are not finite"):
        drawn(held([1, 1, 1]), request, step=9, checkpoints=broken)


def test_a_request_without_words_draws_what_the_probe_draws(monkeypatch):
    monkeypatch.setattr(methods, "_WORTH_SECONDS", float("inf"))  # the clock decides nothing
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    batch = HeldBatch(model, torch.randn(6, 4), torch.arange(6) % 3, nn.functional.cross_entropy)
    live, later = measure(batch), drawn(batch, LandscapeRequest())
    assert dict(live.columns) == dict(later.columns)
    assert live.metadata == later.metadata
    assert np.std(live.columns["loss"]) > 0.01


def test_the_loss_that_is_drawn_may_have_a_weight_decay():
    plain, decayed = (
        drawn(held([1, 2, 3]), LandscapeRequest(mode="exact", grid="5", weight_decay=decay))
        for decay in (0.0, 0.5)
    )
    # The loss is the squared norm itself, so that λ/2 of it is a quarter.
    np.testing.assert_allclose(rows(decayed)[:, 2], 1.25 * rows(plain)[:, 2], rtol=1e-12)
    assert decayed.metadata["loss_term"] == "data + weight decay 0.5"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"plane": "circle"}, "--plane is 'circle'; expected random, trajectory"),
        ({"plane": "1,2,3"}, "--plane is '1,2,3'"),
        ({"grid": "0"}, "--grid is '0'; expected points, as in 51"),
        ({"grid": "5x"}, "--grid is '5x'"),
        ({"plane": "3", "grid": "5x5"}, "the way to one checkpoint is a line"),
        ({"range": "1"}, "--range is '1'; expected LOW:HIGH"),
        ({"range": "1:-1"}, "--range is '1:-1'"),
        ({"range": "0:inf"}, "--range is '0:inf'"),
        ({"normalization": "weight"}, "--normalization is 'weight'; expected one of filter"),
        ({"mode": "quick"}, "--mode is 'quick'; expected one of exact, fast"),
        ({"batch_norm": "drop"}, "--batch-norm is 'drop'; expected one of keep, recompute"),
        ({"tolerance": 0.0}, "--tolerance is 0; expected a number above 0"),
        ({"seconds": -1.0}, "--seconds is -1; expected a number above 0"),
        ({"weight_decay": float("nan")}, "--weight-decay is nan; expected a finite number"),
    ],
)
def test_words_that_say_nothing_are_refused_with_what_is_expected(words, message):
    with pytest.raises(ValueError, match=message):
        LandscapeRequest(**words)
