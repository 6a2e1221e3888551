"""The training of ``analyzer demo`` with probes all along it, against the one without."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import analyzer
from analyzer.cli.demo import record_pair

NAMES = ("landscape", "curvature", "noise", "attribution")


def twins(folder: Path, steps: int, depth: int, probes: tuple[str, ...]) -> tuple[Path, Path]:
    """The loop of the command: both nets, on the digits, with its optimizer and clipping."""
    return record_pair(
        depth=depth, norm="none", steps=steps, seed=0, runs_dir=folder, quiet=True, probes=probes
    )


def final_weights(run: Path, steps: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{steps:012d}.safetensors")


@pytest.mark.parametrize(
    ("depth", "steps", "every"),
    [(4, 4, 4), pytest.param(28, 400, 50, marks=pytest.mark.slow)],
    ids=["short", "whole"],
)
def test_a_series_of_probes_leaves_the_final_weights_of_the_demo_bit_identical(
    tmp_path, depth, steps, every
):
    without = twins(tmp_path, steps, depth, ())
    probed = twins(tmp_path, steps, depth, tuple(f"{name}:{every}" for name in NAMES))
    for plain, other in zip(without, probed, strict=True):
        expected, found = final_weights(plain, steps), final_weights(other, steps)
        assert expected and list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        start = load_file(plain / "checkpoints" / "step-000000000000.safetensors")
        assert any(not torch.equal(start[name], expected[name]) for name in expected)
        run = analyzer.open_run(other)
        assert set(run.probes) == set(NAMES)
        for name in NAMES:
            assert set(run.probe(name)["step"]) == {*range(0, steps, every), steps}
        columns = ["loss", "gradient_norm", "clip_factor"]
        assert run.steps[columns].equals(analyzer.open_run(plain).steps[columns])
