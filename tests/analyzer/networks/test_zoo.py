import pytest
import torch
from torch import Tensor, nn

from analyzer.errors import ScriptError
from analyzer.networks.zoo import EXAMPLES, zoo
from tests.support.zoo_names import plain_twin


def digits_net(name: str, seed: int = 0) -> nn.Module:
    return zoo(name, in_channels=1, num_classes=10, image_size=8, seed=seed)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_listed_name_maps_images_to_finite_scores_and_gradients(name: str) -> None:
    model = digits_net(name)
    scores = model(torch.randn(4, 1, 8, 8))
    assert scores.shape == (4, 10)
    scores.square().sum().backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert model.get_parameter("output.weight").grad.any()


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_network_and_its_plain_twin_start_from_the_same_trunk(name: str) -> None:
    plain, other = digits_net(plain_twin(name)), digits_net(name)
    trunk = other.state_dict()
    assert all(torch.equal(value, trunk[key]) for key, value in plain.state_dict().items())
    beside = set(trunk) - set(plain.state_dict())
    assert all(".shortcut." in key for key in beside)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("resnet20", "plain20"),
        ("resnet56-b", "plain56"),
        ("resnet20-nonorm-w8", "plain20-nonorm-w8"),
        ("mlp50-residual-pair", "mlp50-pair"),
        ("simple28", "simple28-plain"),
        ("simple28-single", "simple28-plain-single"),
        ("plain20", "plain20"),
        ("mlp50", "mlp50"),
        ("simple28-plain", "simple28-plain"),
    ],
)
def test_the_plain_twin_keeps_all_but_the_shortcuts(name: str, plain: str) -> None:
    assert plain_twin(name) == plain


def test_options_reach_the_network() -> None:
    model = digits_net("resnet8-c-preact-nonorm-w4")
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes["layer3.0.shortcut.weight"] == (16, 8, 1, 1)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert isinstance(model.get_submodule("activation"), nn.Sequential)


@pytest.mark.parametrize("name", ["resnet20", "resnet20-preact", "mlp9-residual", "simple4"])
def test_every_operation_but_the_addition_is_a_module(name: str) -> None:
    model = digits_net(name).eval()
    seen: list[Tensor] = []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    scores = model(torch.randn(2, 1, 8, 8))
    nodes, stack = set(), [scores.grad_fn]
    by_modules = {output.grad_fn for output in seen}
    while stack:
        node = stack.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            stack += [after for after, _ in node.next_functions]
    # The transposed weight, the leaves, the two operations of the padded shortcut: inside a module.
    inside = {
        "TBackward0",
        "torch::autograd::AccumulateGrad",
        "SliceBackward0",
        "ConstantPadNdBackward0",
    }
    others = {node.name() for node in nodes - by_modules}
    assert others - inside == {"AddBackward0"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", r"'resnet' is unknown; .* the nearest names are resnet56"),
        ("densenet121", r"'densenet121' is unknown; a family \(resnet, plain, mlp, simple\)"),
        ("resnet21", r"'resnet21': .*depth is 6n \+ 2; the nearest are 20 and 26"),
        ("plain20-b", r"'b' is not an option of 'plain'; its options are preact, nonorm"),
        ("resnet20-a-b", r"give only one of a, b, c"),
        ("mlp1", r"'mlp1': an MLP of depth 1 cannot be built"),
    ],
)
def test_a_name_outside_the_grammar_is_refused(name: str, message: str) -> None:
    with pytest.raises(ScriptError, match=message):
        digits_net(name)
