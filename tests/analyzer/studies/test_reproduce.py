import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from analyzer.cli import main
from analyzer.errors import AnalyzerError
from analyzer.networks.data import dataset
from analyzer.networks.zoo import MLP
from analyzer.studies.measuring import Recipe, error_rate, gaussian, layer_sizes, trained
from analyzer.studies.published import SCALES, markdown, outcomes
from analyzer.studies.reproduce import EXPERIMENTS, experiment, reproduce
from tests.analyzer.networks.test_data import write_cifar


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_measures_what_its_claims_need_and_resumes(
    name: str, tmp_path: Path
) -> None:
    chosen = experiment(name)
    table, about = reproduce(name, tmp_path / "out", scale="tiny", device="cpu")
    missing = [one.claim.key for one in outcomes(chosen, table, "tiny") if not one.values]
    # Depths of the paper that a small scale leaves out are compared at the full one alone.
    assert [c.key for c in chosen.claims if c.key in missing and not c.only_full] == (
        ["depth"] if name == "li2018" else []
    )
    removed = next((tmp_path / "out" / "parts").iterdir())
    removed.unlink()
    begun: list[str] = []
    again, _ = reproduce(
        name,
        tmp_path / "out",
        scale="tiny",
        device="cpu",
        on_part=lambda done, total, part: begun.append(part),
    )
    assert [one.replace(" seed ", "-seed") for one in begun] == [removed.stem]
    assert again.equals(table)
    assert about["command"] == f"analyzer reproduce {name} --scale tiny"
    assert "not comparable: this scale shows only that the code runs" in markdown(
        chosen, table, about
    )


def test_every_experiment_has_the_same_settings_at_every_scale() -> None:
    for name in EXPERIMENTS:
        settings = experiment(name).settings
        assert tuple(settings) == SCALES
        assert settings["tiny"].keys() == settings["laptop"].keys() == settings["full"].keys()
        keys = [claim.key for claim in experiment(name).claims]
        assert len(set(keys)) == len(keys) > 0


def test_the_full_scale_trains_on_cifar(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar", samples=10)
    table, about = reproduce(
        "he2015", tmp_path / "out", scale="tiny", data=tmp_path / "cifar", device="cpu"
    )
    assert about["data"] == "cifar10"
    assert (
        table[table["quantity"].str.startswith("training loss")]["value"].map(math.isfinite).all()
    )


def test_the_command_prints_the_table_and_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["reproduce", "he2016", "--scale", "tiny", "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    claims = json.loads(printed.out)["claims"]
    assert printed.err.count("analyzer: he2016:") == 2
    assert max(max(map(float, claim["values"])) for claim in claims) < 1e-6
    assert json.loads((out / "table.json").read_text()) == json.loads(printed.out)
    assert main(["reproduce", "he2016", "--scale", "tiny", "--out", str(out), "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "not comparable" in printed.out and "arXiv:1603.05027" in printed.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nobody1900"], "there is no experiment 'nobody1900'; expected one of he2015"),
        (["he2016", "--scale", "huge"], "the scale is 'huge'; expected one of tiny, laptop, full"),
        (["he2015", "--scale", "full"], "--data DIR"),
        (["he2016", "--seeds", "0"], "seeds is 0; expected at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(AnalyzerError, match=r"holds no plan\.json"):
        reproduce("he2016", tmp_path, scale="tiny")
    (tmp_path / "plan.json").write_text('{"experiment": "he2015"}')
    with pytest.raises(AnalyzerError, match="differs in experiment"):
        reproduce("he2016", tmp_path, scale="tiny")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(AnalyzerError, match="cannot be read"):
        reproduce("he2016", tmp_path, scale="tiny")


def test_sizes_of_layers_are_those_that_hooks_see() -> None:
    net = MLP(6, 3, depth=4, width=5, residual=True, seed=1)
    inputs, targets = gaussian(0, 7, 6), torch.arange(7) % 3
    seen: dict[str, tuple[float, float]] = {}

    def note(name: str):  # type: ignore[no-untyped-def]
        def forward(module: nn.Module, args: object, output: torch.Tensor) -> None:
            output.register_hook(
                lambda g: seen.update({name: (float(output.norm()), float(g.norm()))})
            )

        return forward

    hooks = [
        m.register_forward_hook(note(n)) for n, m in net.named_modules() if n == "blocks.0.relu"
    ]
    functional.cross_entropy(net(inputs), targets).backward()
    for hook in hooks:
        hook.remove()
    found = {one.name: one for one in layer_sizes(net, inputs, targets)}["blocks.0.relu"]
    assert (found.activation_norm, found.gradient_norm) == pytest.approx(seen["blocks.0.relu"])


def test_a_recipe_drops_and_warms_up_and_a_crop_is_a_window_of_the_padded_image() -> None:
    recipe = Recipe(10, lr=1.0, milestones=(4, 8), warmup=2)
    rates = [recipe.rate(step) for step in range(10)]
    assert rates == pytest.approx([0.1, 0.1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])

    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.inputs = nn.Parameter(torch.zeros(10)), []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.inputs.append(x)
            return x.flatten(1)[:, :10] * self.weight

    net, data = Seen(), dataset("digits")
    trained(net, data, Recipe(1, batch_size=16, augment=True), seed=3, device="cpu")
    windows = {
        one.numpy().tobytes()
        for image in data.train_inputs
        for plane in (functional.pad(image, (4, 4, 4, 4)),)
        for row in range(9)
        for column in range(9)
        for one in (plane[:, row : row + 8, column : column + 8].contiguous(),)
    }
    mirrored = [image.flip(2).contiguous().numpy().tobytes() in windows for image in net.inputs[0]]
    straight = [image.contiguous().numpy().tobytes() in windows for image in net.inputs[0]]
    assert all(a or b for a, b in zip(mirrored, straight, strict=True))
    assert any(mirrored) and any(straight) and not all(straight)
    shifted = {image.contiguous().numpy().tobytes() for image in data.train_inputs}
    assert not all(image.contiguous().numpy().tobytes() in shifted for image in net.inputs[0])


def test_an_error_rate_is_in_percent_of_the_test_part() -> None:
    data = dataset("digits")

    class Always(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(10)[3])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight.expand(len(x), 10)

    wrong = sum(int(target) != 3 for target in data.test_targets) / len(data.test_targets)
    assert error_rate(Always(), data) == pytest.approx(100 * wrong)
