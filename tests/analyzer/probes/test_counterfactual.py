"""Gradients with scaled shortcuts against networks written without them, at the same weights."""

import copy
import json
import time

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, cross_entropy, mse_loss
from torch.utils.checkpoint import checkpoint

import analyzer
from analyzer.networks.zoo import zoo
from analyzer.probes import HeldBatch
from analyzer.probes.counterfactual import measure
from analyzer.storage.schema import PROBES


class Block(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.branch, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6) if norm else nn.Identity()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(torch.tanh(self.norm(self.branch(x))))


def net(norm: bool = False) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), Block(norm), Block(norm), Block(norm), nn.Linear(6, 3))
    return model, torch.randn(40, 4), torch.randint(0, 3, (40,))


def by_hand(
    model: nn.Sequential, x: Tensor, y: Tensor, alpha: float, *, rescaled: bool = False
) -> dict[str, float]:
    """Norms of the gradients at all layers of the network, its formula written out.

    Batch norms get the statistics of the batch in the network with shortcuts, as constants.
    """
    layers: dict[str, Tensor] = {}

    def note(name: str, tensor: Tensor) -> Tensor:
        layers[name] = tensor
        tensor.retain_grad()
        return tensor

    intact, h = x, note("0", model[0](x))
    with torch.no_grad():
        intact = model[0](x)
    for name, block in list(model.named_children())[1:-1]:
        with torch.no_grad():
            whole = block.branch(intact)
            mean, var = whole.mean(0), whole.var(0, correction=0)
        b = note(f"{name}.branch", block.branch(h))

        def normed(z: Tensor, mean=mean, var=var, norm=block.norm) -> Tensor:
            if isinstance(norm, nn.Identity):
                return norm(z)
            return batch_norm(z, mean, var, norm.weight, norm.bias, False, 0.1, norm.eps)

        n = note(f"{name}.norm", normed(b) * 1 if normed(b) is b else normed(b))
        b = note(f"{name}.drop", torch.tanh(n) * 1)
        with torch.no_grad():
            intact = intact + torch.tanh(normed(whole))
        if rescaled:
            b = (
                b
                * (intact.double().std(correction=0) / b.detach().double().std(correction=0)).item()
            )
        h = h * alpha + b if alpha else b
    output = note("4", model[4](h))
    cross_entropy(output, y).backward()
    return {name: tensor.grad.double().norm().item() for name, tensor in layers.items()}


@pytest.mark.parametrize("norm", [False, True], ids=["no norm", "batch norm"])
@pytest.mark.parametrize("in_eval", [False, True], ids=["train", "eval"])
def test_each_variant_is_the_network_that_is_written_so(norm: bool, in_eval: bool) -> None:
    model, x, y = net(norm)
    model.train(not in_eval)
    before = copy.deepcopy(model.state_dict())
    frame = analyzer.counterfactual(model, x, y, cross_entropy)
    assert list(frame.columns) == PROBES["counterfactual"].names
    assert len(frame) == 4 * 11
    for alpha, rescaled in ((1.0, False), (0.5, False), (0.0, False), (0.0, True)):
        rows = frame[(frame["skip_scale"] == alpha) & (frame["rescaled"] == rescaled)]
        found = dict(zip(rows["name"], rows["output_gradient_norm"], strict=True))
        expected = by_hand(model, x, y, alpha, rescaled=rescaled)
        assert found.keys() == expected.keys()
        assert found == pytest.approx(expected, rel=1e-5)
        assert rows["layer"].tolist() == list(range(11))
    assert frame.attrs["not_rescaled"] == []
    assert frame.attrs["losses"][0] == pytest.approx(loss_by_hand(model, x, y), rel=1e-6)
    assert model.training is not in_eval
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def loss_by_hand(model: nn.Sequential, x: Tensor, y: Tensor) -> float:
    """With the statistics of the batch and without dropout."""
    twin = copy.deepcopy(model).train()
    for module in twin.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return cross_entropy(twin(x), y).item()


def test_without_shortcuts_it_is_the_plain_network_to_the_last_bit() -> None:
    class Plain(Block):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.branch(x))

    model, x, y = net()
    plain = nn.Sequential(model[0], *[Plain(False) for _ in range(3)], model[4])
    plain.load_state_dict(model.state_dict())
    edges: list[Tensor] = []
    for module in (plain[0], plain[1].branch, plain[2].branch, plain[3].branch, plain[4]):
        module.register_forward_hook(lambda m, a, output: edges.append(output))
    gradients = torch.autograd.grad(cross_entropy(plain(x), y), edges)
    frame = analyzer.counterfactual(model, x, y, cross_entropy).set_index(
        ["skip_scale", "rescaled"]
    )
    rows = frame.loc[(0.0, False)].set_index("name")["output_gradient_norm"]
    names = ["0", "1.branch", "2.branch", "3.branch", "4"]
    norms = [gradient.double().square().sum().sqrt().item() for gradient in gradients]
    assert rows[names].tolist() == pytest.approx(norms, rel=1e-12)


def test_a_norm_that_is_frozen_in_training_keeps_its_running_statistics() -> None:
    model, x, y = net(norm=True)
    model[1].norm.eval()
    model[1].norm.running_mean.fill_(3.0)
    found = analyzer.counterfactual(model, x, y, cross_entropy).attrs["losses"][0]
    twin = copy.deepcopy(model)
    for block in twin[1:4]:
        block.drop.p = 0.0
    assert found == pytest.approx(cross_entropy(twin(x), y).item(), rel=1e-6)
    assert found != pytest.approx(loss_by_hand(model, x, y), rel=1e-3)


def test_the_metadata_name_branches_that_no_factor_can_scale() -> None:
    model, x, y = net()
    nn.init.zeros_(model[2].branch.weight)
    nn.init.zeros_(model[2].branch.bias)
    found = measure(HeldBatch(model, x, y, cross_entropy))
    assert json.loads(found.metadata["not_rescaled"]) == ["2"]


def test_what_cannot_be_measured_is_refused_in_a_sentence() -> None:
    class Kept(Block):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    x = torch.randn(5, 6)
    with pytest.raises(analyzer.AnalyzerError, match="'Linear' has no residual join; expected"):
        analyzer.counterfactual(nn.Linear(6, 6), x, x, mse_loss)
    with pytest.raises(analyzer.AnalyzerError, match="inside of a checkpoint"):
        analyzer.counterfactual(nn.Sequential(nn.Linear(6, 6), Kept(False)), x, x, mse_loss)
    with pytest.raises(ValueError, match=r"the loss has shape \[5, 6\]"):
        analyzer.counterfactual(nn.Sequential(Block(False)), x, x, lambda output, y: output - y)


def test_it_is_recorded_and_measured_from_a_checkpoint_alike(tmp_path) -> None:
    model, x, y = net(norm=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with analyzer.Recorder(model, tmp_path / "run", probe="counterfactual"):
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    assert "not_recorded" not in run.manifest
    rows = run.probe("counterfactual")
    names = dict(zip(run.layers["layer"], run.layers["name"], strict=True))
    assert set(rows["step"]) == {0, 3}
    assert [names[layer] for layer in rows["layer"]] == rows["name"].tolist()
    last = rows[(rows["step"] == 3) & (rows["skip_scale"] == 1.0)]
    assert last["output_gradient_norm"].notna().all()


@pytest.mark.alone
def test_a_resnet20_takes_about_a_second() -> None:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = zoo("resnet20", in_channels=3, num_classes=10, image_size=32)
    x, y = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    started = time.process_time()
    frame = analyzer.counterfactual(model, x, y, cross_entropy)
    taken = time.process_time() - started
    torch.set_num_threads(threads)
    assert taken < 3  # 0.7 s where nothing else runs
    assert frame["name"].nunique() == len(frame) / 4
