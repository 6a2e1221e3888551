"""Against values of the code of Li et al. (tomgoldstein/loss-landscape, commit 64ef4d5)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import analyzer
from analyzer.probes.landscape import (
    direction_to,
    normalized,
    projected,
    trajectory_plane,
)
from analyzer.probes.landscape import directions as drawing

VALUES = np.load(Path(__file__).with_name("landscape_li2018.npz"))
NAMES = [f"{place}.{kind}" for place in (0, 2, 4) for kind in ("weight", "bias")]
PRECISIONS = [("f64", torch.float64, 1e-10), ("f32", torch.float32, 1e-5)]


def network(dtype: torch.dtype, state: str = "state") -> nn.Sequential:
    layers = (nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))
    model = nn.Sequential(*layers).to(dtype)
    model.load_state_dict({k: torch.tensor(VALUES[f"mlp/{state}/{k}"]) for k in NAMES})
    return model


def batches(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    x, y = torch.tensor(VALUES["data/x"]).to(dtype), torch.tensor(VALUES["data/y"])
    return list(zip(x.split(128), y.split(128), strict=True))


def directions(kind: str = "dir_raw") -> list[dict[str, Tensor]]:
    return [{k: torch.tensor(VALUES[f"mlp/{kind}/{a}/{k}"]) for k in NAMES} for a in "xy"]


def flat(direction: dict[str, Tensor]) -> np.ndarray:
    return torch.cat([part.flatten() for part in direction.values()]).numpy()


def checkpoint(number: int) -> dict[str, Tensor]:
    weights = dict(network(torch.float64).named_parameters())
    pieces = torch.tensor(VALUES[f"mlp/traj/{number}"]).split([w.numel() for w in weights.values()])
    named = zip(weights.items(), pieces, strict=True)
    return {name: piece.view(weight.shape) for (name, weight), piece in named}


@pytest.mark.parametrize("normalization", ["filter", "layer"])
def test_normalized_directions_are_theirs(normalization):
    weights = dict(network(torch.float64).named_parameters())
    theirs = directions(f"f64/{normalization}_biasbn/dir")
    for raw, expected in zip(directions(), theirs, strict=True):
        found = normalized(raw, weights, normalization)
        assert sum(float(part.abs().sum()) for part in found.values()) > 1
        for name in NAMES:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalization", ["filter", "layer"])
def test_random_directions_of_their_draws_are_theirs(normalization, monkeypatch):
    draws = iter([part for raw in directions() for part in raw.values()])
    monkeypatch.setattr(drawing, "_drawn", lambda weight, generator: next(draws))
    found = analyzer.random_directions(network(torch.float64), normalization)
    expected = directions(f"f64/{normalization}_biasbn/dir")
    for axis in (0, 1):
        assert list(found[axis]) == NAMES
        np.testing.assert_allclose(flat(found[axis]), flat(expected[axis]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalization", ["filter", "layer"])
def test_a_surface_has_their_losses(normalization):
    kind, axes = f"f64/{normalization}_biasbn", (VALUES["coords/x2d"], VALUES["coords/y2d"])
    model, data = network(torch.float64), batches(torch.float64)
    frame = analyzer.loss_surface(model, data, cross_entropy, directions(f"{kind}/dir"), *axes)
    found = frame.pivot(index="beta", columns="alpha", values="loss").to_numpy()
    np.testing.assert_allclose(found, VALUES[f"mlp/{kind}/loss2d"], rtol=1e-10)


def test_a_surface_in_single_precision_has_their_losses():
    axes, plane = (VALUES["coords/x2d"], VALUES["coords/y2d"]), directions("f64/filter_biasbn/dir")
    model, data = network(torch.float32), batches(torch.float32)
    frame = analyzer.loss_surface(model, data, cross_entropy, plane, *axes)
    found = frame.pivot(index="beta", columns="alpha", values="loss").to_numpy()
    expected = VALUES["mlp/f32/filter_biasbn/loss2d"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalization", ["filter", "layer"])
def test_a_line_has_their_losses(normalization):
    kind, alphas = f"f64/{normalization}_biasbn", VALUES["coords/x1d"]
    model, data, line = network(torch.float64), batches(torch.float64), directions(f"{kind}/dir")[0]
    frame = analyzer.loss_surface(model, data, cross_entropy, line, alphas)
    np.testing.assert_allclose(frame["loss"], VALUES[f"mlp/{kind}/loss1d"], rtol=1e-10)


def test_a_line_in_single_precision_has_their_losses():
    line, alphas = directions("f64/filter_biasbn/dir")[0], VALUES["coords/x1d"]
    model, data = network(torch.float32), batches(torch.float32)
    frame = analyzer.loss_surface(model, data, cross_entropy, line, alphas)
    expected = VALUES["mlp/f32/filter_biasbn/loss1d"]
    np.testing.assert_allclose(frame["loss"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("tag", "dtype", "tolerance"), PRECISIONS)
def test_the_line_between_two_checkpoints_has_their_losses(tag, dtype, tolerance):
    start, end = network(dtype, "state_init"), network(dtype)
    line, alphas = direction_to(start, end.state_dict()), VALUES["coords/interp1d"]
    found = analyzer.loss_surface(start, batches(dtype), cross_entropy, line, alphas)["loss"]
    expected = VALUES[f"mlp/{tag}/interp_weights/loss1d"]
    absolute = 0 if dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=absolute)


@pytest.mark.parametrize(("kind", "weights_only"), [("all", False), ("biasbn", True)])
def test_centered_principal_directions_are_theirs_up_to_sign(kind, weights_only):
    model, trajectory = network(torch.float64), [checkpoint(k) for k in range(13)]
    plane = trajectory_plane(model, trajectory, centered=True, weights_only=weights_only)
    for place, axis in enumerate(("xdir", "ydir")):
        theirs = VALUES[f"mlp/pca_{kind}/{axis}"]
        cosine = flat(plane.directions[place]) @ theirs
        assert abs(cosine) == pytest.approx(1, abs=1e-10)
        expected = np.sign(cosine) * VALUES[f"mlp/pca_{kind}/proj"][:, place]
        np.testing.assert_allclose(plane.coordinates[:, place], expected, rtol=0, atol=1e-9)
    shares = VALUES[f"mlp/pca_{kind}/explained_variance_ratio_"]
    np.testing.assert_allclose(plane.variance_explained, shares, rtol=1e-10)


@pytest.mark.parametrize("kind", ["all_params", "weights_only"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_largest_eigenvalues_are_those_of_the_dense_hessian(kind, dtype):
    model, data = network(dtype), batches(dtype)
    for weight in model.parameters():
        weight.requires_grad_(kind == "all_params" or weight.dim() > 1)
    dense = VALUES[f"mlp/hess_dense_eigs_{kind}"][::-1]
    assert analyzer.sharpness(model, data, cross_entropy) == pytest.approx(dense[0], rel=1e-6)
    found = analyzer.hessian_spectrum(
        model, data, cross_entropy, k=4, num_vectors=1, num_steps=1
    ).set_index("quantity")["value"]
    largest = found[[f"eigenvalue_{place}" for place in range(4)]]
    np.testing.assert_allclose(largest, dense[:4], rtol=1e-6)
    # Its tolerance is one of the largest magnitude, as for all of them.
    assert found["smallest_eigenvalue"] == pytest.approx(dense[-1], abs=1e-4 * dense[0])
    if kind == "weights_only":  # to the tolerance of 1e-2 of their eigensolver
        largest, smallest = VALUES["mlp/hess_tg_maxmin_weights_only"]
        assert found["sharpness"] == pytest.approx(largest, rel=1e-2)
        assert found["smallest_eigenvalue"] == pytest.approx(smallest, rel=5e-2)


def test_the_trace_is_that_of_the_dense_hessian_within_its_error():
    model, data = network(torch.float64), batches(torch.float64)
    found = analyzer.hessian_spectrum(
        model, data, cross_entropy, k=1, num_vectors=300, num_steps=1
    ).set_index("quantity")["value"]
    expected, error = VALUES["mlp/hess_trace"].item(), found["trace_standard_error"]
    assert expected == pytest.approx(VALUES["mlp/hess_dense_eigs_all_params"].sum(), rel=1e-6)
    assert error < 0.05 * expected
    assert found["trace"] == pytest.approx(expected, abs=3 * error)


def test_the_plane_of_a_trajectory_is_not_centered_and_shows_what_it_leaves_out():
    model, trajectory = network(torch.float64), [checkpoint(k) for k in range(12)]
    plane = trajectory_plane(model, trajectory)
    rows = np.stack([VALUES[f"mlp/traj/{k}"] - VALUES["mlp/traj/12"] for k in range(12)])
    _, sizes, axes = np.linalg.svd(rows, full_matrices=False)
    for place in (0, 1):
        assert abs(flat(plane.directions[place]) @ axes[place]) == pytest.approx(1, abs=1e-10)
    expected = sizes[:2] ** 2 / (sizes**2).sum()
    np.testing.assert_allclose(plane.variance_explained, expected, rtol=1e-10)
    shown = rows @ axes[:2].T @ axes[:2]
    rest = np.linalg.norm(rows - shown, axis=1) / np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(plane.residuals, rest, rtol=1e-9)
    assert plane.residuals.max() > 0.1


def test_projection_by_least_squares_finds_coordinates_in_a_skewed_plane():
    model = network(torch.float64)
    first, second = (d for d in directions("f64/filter_biasbn/dir"))
    skewed = {name: first[name] + second[name] for name in NAMES}
    state = model.state_dict()
    inside = {name: state[name] + 0.25 * first[name] - 2 * skewed[name] for name in NAMES}
    outside = {name: tensor + 1 for name, tensor in state.items()}
    coordinates, residuals = projected(model, [inside, outside, state], [first, skewed])
    np.testing.assert_allclose(coordinates[0], [0.25, -2], rtol=1e-10)
    assert residuals[0] < 1e-12 and residuals[1] > 0.5 and residuals[2] == 0
