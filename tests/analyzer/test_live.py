import pytest
import torch
from torch import nn

import analyzer


class Residual(nn.Module):
    """One block, ``x + scale · branch(x)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Linear(3, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.branch(x))


def test_joins_and_splits_of_one_block_are_those_of_autograd():
    torch.manual_seed(0)
    model, x, y = Residual().double(), torch.randn(5, 3).double(), torch.randn(5, 2).double()
    (join,) = analyzer.find_joins(model, x)
    assert (join.operation, join.shortcut, join.branch_layers) == ("add", "identity", ["branch"])
    frame = analyzer.gradient_splits(model, x, y, nn.functional.mse_loss)
    stem = model.stem(x)
    for detached, column in ((0, "branch_gradient_norm"), (1, "shortcut_gradient_norm")):
        shortcut = stem.detach() if detached == 0 else stem
        branch = model.branch(stem.detach() if detached == 1 else stem)
        loss = nn.functional.mse_loss(model.head(shortcut + branch), y)
        (expected,) = torch.autograd.grad(loss, stem, retain_graph=True)
        assert frame[column].iloc[0] == pytest.approx(expected.norm().item(), rel=1e-12)
    assert not any(p.grad is not None for p in model.parameters())


class Mixing(nn.Module):
    """Attention over the batch, in a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.query, self.value = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.stem(x)
        return x + torch.softmax(self.query(x) @ x.T, -1) @ self.value(x)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)

    def forward(self, x, other):
        return x + self.first(x + other)


def scaled(model, x):
    with analyzer.skip_scale(model, 0.5):
        return model(x)


def mse(output, target):
    return nn.functional.mse_loss(output, output.detach() + 1)


X = torch.linspace(-1, 1, 18).view(6, 3)
ALL = {
    "find_joins": lambda m: analyzer.find_joins(m, X),
    "gradient_splits": lambda m: analyzer.gradient_splits(m, X, None, mse),
    "path_spectrum": lambda m: analyzer.path_spectrum(m, X, None, mse),
    "skip_scale": lambda m: scaled(m, X),
    "lesion_study": lambda m: analyzer.lesion_study(m, X, None, mse),
    "counterfactual": lambda m: analyzer.counterfactual(m, X, None, mse),
    "forward_correlation": lambda m: analyzer.forward_correlation(m, X),
    "gradient_correlation": lambda m: analyzer.gradient_correlation(m, X),
    "gradient_autocorrelation": lambda m: analyzer.gradient_autocorrelation(m, X, 2),
    "jacobian_spectrum": lambda m: analyzer.jacobian_spectrum(m, X),
    "random_directions": lambda m: analyzer.random_directions(m),
    "loss_surface": lambda m: analyzer.loss_surface(
        m, [(X, X)], mse, analyzer.random_directions(m), [0, 1]
    ),
    "sharpness": lambda m: analyzer.sharpness(m, [(X, X)], mse),
    "hessian_spectrum": lambda m: analyzer.hessian_spectrum(m, [(X, X)], mse),
    "gradient_noise_scale": lambda m: analyzer.gradient_noise_scale(m, [(X, X)], mse),
    "layer_attribution": lambda m: analyzer.layer_attribution(m, X, 0),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("given", [None, "resnet18"])
def test_what_is_no_model_is_refused(name, given):
    with pytest.raises(analyzer.AnalyzerError, match=f"the model is a {type(given).__name__}; exp"):
        ALL[name](given)


@pytest.mark.parametrize("name", [name for name in ALL if name != "random_directions"])
def test_a_call_that_lacks_arguments_is_refused(name):
    expected = TypeError if name == "skip_scale" else analyzer.AnalyzerError
    with pytest.raises(expected, match=r"Two.forward\(\) missing 1 required .* 'other'") as caught:
        ALL[name](Two())
    assert str(caught.value).count("expected the arguments") == 1


@pytest.mark.parametrize(
    "name", ["gradient_splits", "path_spectrum", "skip_scale", "lesion_study", "counterfactual"]
)
def test_a_model_without_joins_is_refused_where_joins_are_asked_for(name):
    with pytest.raises(analyzer.AnalyzerError, match="has no residual join; expected"):
        ALL[name](nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))


@pytest.mark.parametrize(
    "name",
    [
        "path_spectrum",
        "gradient_correlation",
        "gradient_noise_scale",
        "layer_attribution",
    ],
)
def test_a_model_that_mixes_samples_is_refused_where_each_counts_by_itself(name):
    torch.manual_seed(0)
    with pytest.raises(analyzer.AnalyzerError, match="of one"):
        ALL[name](Mixing())


def test_batch_norms_that_train_have_the_statistics_of_the_batch():
    """By hand: the same network with the mean and the variance of the batch as numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(9, 3)
    found = analyzer.gradient_correlation(model, x)
    hidden = model[0](x)
    mean, var = hidden.mean(0).detach(), hidden.var(0, correction=0).detach()
    output = model[3](torch.tanh((hidden - mean) / (var + model[1].eps).sqrt()))
    (rows,) = torch.autograd.grad(output.sum(), hidden)
    rows = nn.functional.normalize(rows)
    pairs = [float(rows[i] @ rows[j]) for i in range(9) for j in range(i)]
    assert found["correlation"][0] == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
    assert found.attrs["mode"] == "train" and found.attrs["mixes_samples"] == "false"
    alone = analyzer.gradient_correlation(model.eval(), x)["correlation"][0]
    assert abs(alone - found["correlation"][0]) > 1e-3


class Normalized(nn.Module):
    """Batch norm in a branch: in training mode it mixes the samples; `branch` is it by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.stem(x)
        return x + self.last(self.norm(x))

    def branch(self, h, like=None):
        mean, variance = h.mean(0), h.var(0, correction=0)
        if like is not None:  # constants
            mean, variance = like.mean(0).detach(), like.var(0, correction=0).detach()
        return self.last((h - mean) / (variance + self.norm.eps).sqrt())


def test_what_is_of_a_whole_batch_is_exact_for_a_model_that_mixes_its_samples():
    """Splits and counterfactuals, with the batch's statistics; the Jacobian of a whole batch."""
    torch.manual_seed(0)
    model, x = Normalized().double(), X.double()

    def loss(output, _):
        return output.sin().mean()

    fork = model.stem(x)
    s, b = fork.clone(), fork.clone()
    gradients = torch.autograd.grad(loss(s + model.branch(b), None), (s, b))
    splits = analyzer.gradient_splits(model, x, None, loss)
    columns = ["shortcut_gradient_norm", "branch_gradient_norm"]
    truth = [gradient.norm().item() for gradient in gradients]
    assert splits.loc[0, columns].tolist() == pytest.approx(truth, rel=1e-12)

    found = analyzer.counterfactual(model, x, None, loss)
    for alpha in (1.0, 0.0):
        output = alpha * fork + model.branch(fork, fork)
        (gradient,) = torch.autograd.grad(loss(output, None), fork, retain_graph=True)
        rows = found[(found["skip_scale"] == alpha) & ~found["rescaled"]]
        norm = rows.set_index("name")["output_gradient_norm"]["stem"]
        assert norm == pytest.approx(gradient.norm().item(), rel=1e-12)

    mixing = Mixing().double()

    def attended(h):
        return h + torch.softmax(mixing.query(h) @ h.T, -1) @ mixing.value(h)

    dense = torch.autograd.functional.jacobian(lambda v: attended(mixing.stem(v)), x)
    expected = torch.linalg.svdvals(dense.reshape(24, 18))
    spectrum = analyzer.jacobian_spectrum(mixing, x)
    values = spectrum[spectrum["name"] == "network"]["singular_value"]
    assert values.tolist() == pytest.approx(expected.tolist(), rel=1e-9)
