import math

import pytest
import torch
from torch import nn

import analyzer
from analyzer.probes.landscape import cosine, direction_to, plane_through, trajectory_plane


class Mixed(nn.Module):
    """Every kind of weight: rows, channels, 5-D kernels, vectors, a scalar, tied, whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.output = nn.Linear(4, 7, bias=False)
        self.output.weight = self.embedding.weight
        self.linear = nn.Linear(4, 3)
        self.transposed = nn.ConvTranspose2d(3, 5, 2)
        self.volume = nn.Conv3d(2, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.codes = nn.Parameter(torch.arange(6).view(2, 3), requires_grad=False)


def test_every_filter_of_a_direction_has_the_norm_of_its_weights():
    model = Mixed()
    for direction in analyzer.random_directions(model):
        assert list(direction) == [name for name, _ in model.named_parameters()]
        for name, weight in model.named_parameters():
            step = direction[name]
            assert step.shape == weight.shape and step.dtype == weight.dtype
            if weight.dim() > 1 and weight.is_floating_point():
                expected = weight.detach().flatten(1).norm(dim=1)
                torch.testing.assert_close(step.flatten(1).norm(dim=1), expected)
            else:
                assert not step.any()


def test_a_layer_normalized_direction_has_the_norm_of_the_tensor_and_a_plain_one_does_not():
    model = Mixed()
    weight = model.volume.weight
    layered, _ = analyzer.random_directions(model, "layer")
    torch.testing.assert_close(layered["volume.weight"].norm(), weight.detach().norm())
    plain, _ = analyzer.random_directions(model, "none")
    raw = plain["volume.weight"]
    # 216 Gaussian numbers of variance 1.
    assert raw.norm().item() == pytest.approx(216**0.5, rel=0.2)
    ratio = raw / layered["volume.weight"]
    torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio))


def test_equal_seeds_give_equal_directions_in_every_precision_and_others_do_not():
    model = nn.Linear(5, 4)
    first, second = analyzer.random_directions(model, seed=3)
    again, _ = analyzer.random_directions(model, seed=3)
    other, _ = analyzer.random_directions(model, seed=4)
    assert torch.equal(first["weight"], again["weight"])
    assert not torch.equal(first["weight"], other["weight"])
    wide, _ = analyzer.random_directions(model.double(), seed=3)
    torch.testing.assert_close(wide["weight"].float(), first["weight"])
    assert abs(cosine(first, second)) < 0.9


def test_drawing_does_not_touch_the_global_random_state():
    model, before = nn.Linear(3, 3), torch.get_rng_state()
    analyzer.random_directions(model)
    assert torch.equal(before, torch.get_rng_state())


def test_a_filter_of_zeros_does_not_move_and_one_that_is_not_finite_shows_it():
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight[0], model.weight[1, 2] = 0, float("nan")
    step, _ = analyzer.random_directions(model)
    assert not step["weight"][0].any()
    assert step["weight"][1].isnan().all() and step["weight"][2].isfinite().all()


def test_an_unknown_normalization_is_refused():
    with pytest.raises(ValueError, match="'filters' is unknown; choose one of filter, layer, none"):
        analyzer.random_directions(nn.Linear(2, 2), "filters")


def test_a_lazy_model_that_never_ran_is_refused():
    with pytest.raises(ValueError, match=r"'weight' has no shape yet.*call the model once"):
        analyzer.random_directions(nn.LazyLinear(3))


def test_the_cosine_of_directions_is_that_of_the_vectors():
    first = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    second = {"b": torch.tensor([2.0])}
    assert cosine(first, second) == pytest.approx(0.8)
    assert cosine(first, {"c": torch.ones(1)}) == 0
    assert math.isnan(cosine(first, {"b": torch.zeros(1)}))


def test_a_plane_through_checkpoints_has_them_at_its_corners():
    model, other, third = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)
    first, second = plane_through(model, other.state_dict(), third.state_dict())
    torch.testing.assert_close(model.weight.detach() + first["weight"], other.weight.detach())
    torch.testing.assert_close(model.bias.detach() + second["bias"], third.bias.detach())


def test_a_checkpoint_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"lacks 'weight' and 1 more.*of this model"):
        direction_to(nn.Linear(3, 2), {"other": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"shape \[4, 3\], expected \[2, 3\]"):
        direction_to(nn.Linear(3, 2), nn.Linear(3, 4).state_dict())


def test_running_statistics_in_a_checkpoint_are_no_part_of_a_direction():
    model, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    other(torch.randn(8, 3))
    assert list(direction_to(model, other.state_dict())) == ["weight", "bias"]


def test_checkpoints_on_a_line_span_no_plane():
    model = nn.Linear(2, 2)
    line = [{k: t * f for k, t in model.state_dict().items()} for f in (0.25, 0.5, 0.75)]
    with pytest.raises(ValueError, match="3 checkpoints span no plane"):
        trajectory_plane(model, line)
