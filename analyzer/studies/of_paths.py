"""Short paths: what carries the gradient of a deep residual net, and what it does without."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.functional import cross_entropy

from analyzer.live import lesion_study, path_spectrum
from analyzer.networks.data import Dataset
from analyzer.networks.zoo import zoo_for
from analyzer.studies.measuring import Recipe, error_rate, trained
from analyzer.studies.published import Claim, Experiment, Numbers
from analyzer.studies.reproduce import Case

__all__ = ["VEIT2016"]

Row = tuple[str, float | None, float]


def _veit2016(case: Case) -> Iterator[Row]:
    settings, data = case.settings, case.data
    name = settings[case.part]
    model = zoo_for(name, data, seed=case.seed)
    recipe = Recipe(**settings["recipe"])
    trained(model, data, recipe, seed=case.seed, device=case.device)
    place = next(model.parameters()).device
    samples = settings["samples"]
    inputs, targets = data.test_inputs[:samples].to(place), data.test_targets[:samples].to(place)
    yield f"error {case.part}", None, error_rate(model, data)
    if case.part == "plain":
        for number, wrong in enumerate(_without_blocks(model, data)):
            yield "error without block, plain", float(number), wrong
        return
    paths = path_spectrum(
        model,
        inputs[: settings["path_samples"]],
        targets[: settings["path_samples"]],
        cross_entropy,
    )
    yield "effective length", None, float(paths.attrs["effective_path_length"])
    lengths = paths["length"]
    middle = lengths.between(5, 17)
    yield (
        "paths from 5 to 17",
        None,
        float(paths["num_paths"][middle].sum() / paths["num_paths"].sum()),
    )
    yield (
        "paths from 19 to 35",
        None,
        float(paths["num_paths"][lengths.between(19, 35)].sum() / paths["num_paths"].sum()),
    )
    norms = paths["gradient_norm"]
    yield "gradient from 5 to 17", None, float(norms[middle].sum() / norms.sum())
    for length, norm in zip(lengths, norms, strict=True):
        yield "gradient", float(length), float(norm)
    lesions = lesion_study(model, inputs, targets, cross_entropy)
    whole = lesions.attrs["accuracy"]
    for number, accuracy in enumerate(lesions["accuracy"]):
        yield "points lost without branch", float(number), 100 * (whole - float(accuracy))


def _without_blocks(model: nn.Module, data: Dataset) -> list[float]:
    """Return the test error with each block that keeps the shape left out, one at a time."""
    found = []
    for stage in (model.layer1, model.layer2, model.layer3):
        blocks: Any = stage
        # The first block of a later stage halves the image; nothing can stand for it.
        for place in range(0 if stage is model.layer1 else 1, len(blocks)):
            block, blocks[place] = blocks[place], nn.Identity()
            found.append(error_rate(model, data))
            blocks[place] = block
    return found


def _lost(numbers: Numbers) -> list[float]:
    """Return the points of accuracy lost at each join but the two that halve the image."""
    lost = [value for _, value in numbers.curve("points lost without branch")]
    third = len(lost) // 3
    return [value for place, value in enumerate(lost) if place not in (third, 2 * third)]


VEIT2016 = Experiment(
    name="veit2016",
    title="A residual network of 54 blocks is carried by paths that cross 5 to 17 of them, and "
    "does without any one block",
    source="Veit et al. (2016), Residual networks behave like ensembles of relatively shallow "
    "networks, arXiv:1605.06431",
    claims=(
        Claim(
            "paths_middle",
            "share of all paths that cross 19 to 35 blocks",
            "more than 95 %",
            0.95,
            1.0,
            "as published",
            lambda n: n["paths from 19 to 35"],
        ),
        Claim(
            "paths_short",
            "share of all paths that cross 5 to 17 blocks",
            "0.45 %",
            0.00445,
            0.00455,
            "rounding of the published number",
            lambda n: n["paths from 5 to 17"],
            0.0045,
        ),
        Claim(
            "effective_length",
            "effective path length of the gradient after training",
            "between 5 and 17",
            5.0,
            17.0,
            "as published",
            lambda n: n["effective length"],
        ),
        Claim(
            "gradient_short",
            "share of the gradient norm on paths that cross 5 to 17 blocks",
            "almost all",
            0.8,
            1.0,
            "four fifths",
            lambda n: n["gradient from 5 to 17"],
        ),
        Claim(
            "median_lost",
            "points of accuracy lost without a block, residual, median over blocks",
            "hardly any (figure: below 1)",
            -1.0,
            1.0,
            "the scale of the figure",
            lambda n: statistics.median(_lost(n)),
        ),
        Claim(
            "plain_error",
            "test error of a plain net without one block, %, median over blocks",
            "chance: 90 %",
            75.0,
            95.0,
            "chance, give or take what few classes are guessed",
            lambda n: statistics.median(v for _, v in n.curve("error without block, plain")),
            90.0,
        ),
        Claim(
            "test_error",
            "test error of the residual net, %",
            "6.10",
            5.6,
            6.6,
            "half a point",
            lambda n: n["error residual"],
            6.1,
            "digits in place of CIFAR-10",
        ),
    ),
    method="SGD; then exact path spectrum (`path_spectrum`: all paths, where the paper samples "
    "single ones), `lesion_study` on test images; of the plain net each block that keeps the shape "
    "is left out in turn.",
    settings={
        "tiny": {
            "seeds": 1,
            "residual": "resnet14-preact-w4",
            "plain": "plain14-w4",
            "recipe": {"steps": 3, "lr": 0.05, "batch_size": 32},
            "samples": 16,
            "path_samples": 2,
        },
        "laptop": {
            "seeds": 1,
            "residual": "resnet110-preact-w8",
            "plain": "plain20-w8",
            "recipe": {"steps": 200, "lr": 0.05, "batch_size": 64, "milestones": (150,)},
            "samples": 120,
            "path_samples": 8,
        },
        "full": {
            "seeds": 1,
            "residual": "resnet110-preact",
            "plain": "plain20",
            "recipe": {"steps": 64000, "milestones": (32000, 48000), "warmup": 400}
            | {"augment": True},
            "samples": 10000,
            "path_samples": 64,
        },
    },
    changed={
        "tiny": "14 layers of width 4, 3 steps.",
        "laptop": "digits of 8×8 pixels, width 8 in place of 16, 200 steps; a plain net of 20 "
        "layers in place of VGG.",
    },
    measure=_veit2016,
    discussion="The effective length is {effective_length} blocks, near the short end of the "
    "paper's range, and {gradient_short} of the gradient norm is on its paths, less than almost "
    "all: after so few steps still shorter paths carry the rest.",
    parts=lambda settings: ("residual", "plain"),
    needs_data=True,
)
