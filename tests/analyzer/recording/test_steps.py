"""Which passes and updates make a step, against the same training by plain autograd."""

import copy
import math

import pytest
import torch
from torch import nn

import analyzer
from analyzer.storage.run import open_run


def net():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


class Truth:
    """What plain autograd gives; nothing of it runs while a recorder is there."""

    def __init__(self, model):
        self.losses, self.gradients, self.outputs = [], [], []
        self.model, self._output = model, None

    def loss(self, x):
        hidden = self.model[0](x)
        if hidden.requires_grad:
            hidden.retain_grad()
        self._output = hidden
        return self.model[2](self.model[1](hidden)).square().mean()

    def received(self, *losses):
        self.losses.append(sum(loss.item() for loss in losses))
        self.gradients.append([p.grad.clone() for p in self.model.parameters()])
        self.outputs.append(self._output.grad.norm().item())


class Plain:
    """Stands in for the truth in the recorded training."""

    def __init__(self, model):
        self.model = model

    def loss(self, x):
        return self.model(x).square().mean()

    def received(self, *losses):
        pass


def inputs(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 4, generator=generator) for _ in range(count)]


def compare(tmp_path, train, **options):
    """Record a training, and check each number of its steps against the truth; return the steps."""
    torch.manual_seed(0)
    model = net()
    twin = copy.deepcopy(model)
    truth = Truth(twin)
    train(truth)
    with analyzer.Recorder(model, tmp_path / "run", **options):
        train(Plain(model))
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
    run = open_run(tmp_path / "run")
    steps, layers, stats = run.steps, run.layer_stats(), run.parameter_stats()
    assert steps["loss"].tolist() == pytest.approx(truth.losses, rel=1e-6)
    first = layers[layers["layer"] == 0]
    assert first["output_gradient_norm"].tolist() == pytest.approx(truth.outputs, rel=1e-5)
    for number in range(4):
        found = stats[stats["parameter"] == number]
        expected = [gradients[number].norm().item() for gradients in truth.gradients]
        assert found["gradient_norm"].tolist() == pytest.approx(expected, rel=1e-5)
    assert not steps["skipped"].any()
    return steps


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def update_by_hand(model):
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(0.1 * p.grad)


def update_data(model):
    for p in model.parameters():
        p.data.add_(p.grad, alpha=-0.1)


def replace_data(model):
    for p in model.parameters():
        p.data = p.data - 0.1 * p.grad


def set_to_none(model):
    model.zero_grad()


def set_to_zero(model):
    model.zero_grad(set_to_none=False)


UPDATES = [update_by_hand, update_data, replace_data]
CLEARED = [set_to_none, set_to_zero]


@pytest.mark.parametrize("clear", CLEARED)
@pytest.mark.parametrize("passes", [1, 2])
def test_passes_that_are_cleared_before_the_update_are_discarded(tmp_path, clear, passes):
    def train(seen):
        optimizer = sgd(seen.model)
        for x in inputs(3):
            for _ in range(passes):
                x = x.clone().requires_grad_()
                seen.loss(x).backward()
                x = (x + 0.1 * x.grad.sign()).detach()
            clear(seen.model)
            loss = seen.loss(x)
            loss.backward()
            seen.received(loss)
            optimizer.step()
            clear(seen.model)

    steps = compare(tmp_path, train)
    assert steps["num_backward"].tolist() == [passes + 1] * 3
    assert steps["num_discarded"].tolist() == [passes] * 3


def test_a_first_discarded_pass_late_in_a_training_is_seen(tmp_path):
    def train(seen):
        optimizer = sgd(seen.model)
        for step, x in enumerate(inputs(5)):
            if step == 3:
                seen.loss(x).backward()
                optimizer.zero_grad()
            loss = seen.loss(x)
            loss.backward()
            seen.received(loss)
            optimizer.step()
            optimizer.zero_grad()

    assert compare(tmp_path, train)["num_discarded"].tolist() == [0, 0, 0, 1, 0]


def test_a_discarded_pass_over_a_kept_graph_leaves_nothing(tmp_path):
    def train(seen):
        optimizer = sgd(seen.model)
        for x in inputs(3):
            loss = seen.loss(x)
            loss.backward(retain_graph=True)
            optimizer.zero_grad()
            if isinstance(seen, Truth):
                seen._output.grad = None
            loss.backward()
            seen.received(loss)
            optimizer.step()
            optimizer.zero_grad()

    assert compare(tmp_path, train)["num_discarded"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("climbs", [1, 3])
def test_the_climbs_of_sharpness_aware_minimization_are_discarded(tmp_path, climbs):
    def train(seen):
        optimizer = sgd(seen.model)
        for x in inputs(4):
            old = [p.detach().clone() for p in seen.model.parameters()]
            for _ in range(climbs):
                seen.loss(x).backward()
                with torch.no_grad():
                    for p in seen.model.parameters():
                        p.add_(0.05 * p.grad / p.grad.norm())
                optimizer.zero_grad()
            loss = seen.loss(x)
            loss.backward()
            seen.received(loss)
            for p, before in zip(seen.model.parameters(), old, strict=True):
                p.data = before
            optimizer.step()
            optimizer.zero_grad()

    steps = compare(tmp_path, train)
    assert steps["num_backward"].tolist() == [climbs + 1] * 4
    assert steps["num_discarded"].tolist() == [climbs] * 4


class TwoSteps(torch.optim.SGD):
    """Sharpness-aware minimization whose step takes a closure for its second pass."""

    def step(self, closure):
        old = [p.detach().clone() for p in self.param_groups[0]["params"]]
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.add_(0.05 * p.grad)
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for p, before in zip(self.param_groups[0]["params"], old, strict=True):
            p.data = before
        super().step()


def test_a_closure_may_follow_a_pass_that_is_discarded(tmp_path):
    def train(seen):
        optimizer = TwoSteps(seen.model.parameters(), lr=0.1)
        for x in inputs(3):
            seen.loss(x).backward()

            def closure(x=x):
                loss = seen.loss(x)
                loss.backward()
                seen.received(loss)

            optimizer.step(closure)
            optimizer.zero_grad()

    steps = compare(tmp_path, train)
    assert steps["num_discarded"].tolist() == [1, 1, 1]
    assert steps["num_backward"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("others", ["none", "unrelated", "idle"])
def test_an_update_by_hand_ends_a_step_whatever_optimizers_there_are(tmp_path, update, others):
    def train(seen):
        held = {"none": [], "unrelated": [nn.Parameter(torch.zeros(1))], "idle": None}[others]
        optimizer = sgd(seen.model) if held is None else held and torch.optim.SGD(held, 0.1)
        for x in inputs(5):
            loss = seen.loss(x)
            loss.backward()
            seen.received(loss)
            update(seen.model)
            seen.model.zero_grad()
        return optimizer

    steps = compare(tmp_path, train)
    assert steps["num_backward"].tolist() == [1] * 5 and not steps["num_discarded"].any()


@pytest.mark.parametrize("update", UPDATES)
def test_passes_before_an_update_by_hand_are_accumulated(tmp_path, update):
    def train(seen):
        for step in range(4):
            losses = [seen.loss(x) / 2 for x in inputs(2, seed=step)]
            outputs = []
            for x in inputs(2, seed=step):
                loss = seen.loss(x) / 2
                loss.backward()
                if isinstance(seen, Truth):
                    outputs.append(seen._output.grad.norm().item())
            seen.received(*losses)
            if isinstance(seen, Truth):
                seen.outputs[-1] = math.hypot(*outputs)
            update(seen.model)
            seen.model.zero_grad()

    assert compare(tmp_path, train)["num_backward"].tolist() == [2] * 4


@pytest.mark.parametrize("clip", [nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_])
def test_an_update_by_hand_receives_clipped_gradients(tmp_path, clip):
    norms = []

    def train(seen):
        for x in inputs(4):
            loss = seen.loss(x)
            loss.backward()
            gradients = [p.grad.flatten() for p in seen.model.parameters()]
            norms.append(torch.cat(gradients).norm().item())
            clip(seen.model.parameters(), 0.01)
            seen.received(loss)
            update_by_hand(seen.model)
            seen.model.zero_grad()

    steps = compare(tmp_path, train)
    assert steps["gradient_norm"].tolist() == pytest.approx(norms[4:], rel=1e-5)
    assert (steps["clip_factor"] < 1).all()


def test_a_pass_may_be_discarded_where_weights_are_updated_by_hand(tmp_path):
    def train(seen):
        for step, x in enumerate(inputs(4)):
            if step:
                seen.loss(x).backward()
                seen.model.zero_grad()
            loss = seen.loss(x)
            loss.backward()
            seen.received(loss)
            update_by_hand(seen.model)
            seen.model.zero_grad()

    assert compare(tmp_path, train)["num_discarded"].tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("clear", [set_to_none, lambda model: None])
def test_without_any_update_each_pass_is_a_step(tmp_path, clear):
    def train(seen):
        for x in inputs(40):
            seen.model.zero_grad()
            loss = seen.loss(x)
            loss.backward()
            seen.received(loss)
            clear(seen.model)

    assert compare(tmp_path, train)["num_backward"].tolist() == [1] * 40


def test_a_step_that_is_asked_for_ends_a_program_without_updates(tmp_path):
    model = net()
    count = 0
    with analyzer.Recorder(model, tmp_path / "run", stop_after=2):
        for x in inputs(5):
            model(x).sum().backward()
            count += 1
    assert count == 2 and len(open_run(tmp_path / "run").steps) == 2


@pytest.mark.parametrize("micro", [1, 2])
def test_optimizers_that_step_inside_a_backward_pass_make_one_step_with_it(tmp_path, micro):
    def train(seen):
        parameters = list(seen.model.parameters())
        optimizers = {p: torch.optim.Adam([p], lr=1e-2) for p in parameters}
        gradients, count = {}, [0]

        def hook(p):
            if count[0] % micro == 0:
                gradients[p] = p.grad.clone()
                optimizers[p].step()
                optimizers[p].zero_grad()

        handles = [p.register_post_accumulate_grad_hook(hook) for p in parameters]
        for step in range(3):
            outputs, losses = [], []
            for x in inputs(micro, seed=step):
                count[0] += 1
                loss = seen.loss(x)
                loss.backward()
                losses.append(loss)
                if isinstance(seen, Truth):
                    outputs.append(seen._output.grad.norm().item())
            if isinstance(seen, Truth):
                seen.losses.append(sum(loss.item() for loss in losses))
                seen.gradients.append([gradients[p] for p in parameters])
                seen.outputs.append(math.hypot(*outputs))
        for handle in handles:
            handle.remove()

    steps = compare(tmp_path, train)
    assert steps["num_backward"].tolist() == [micro] * 3 and not steps["num_discarded"].any()


def test_gradients_of_a_nan_step_that_is_given_up_are_discarded(tmp_path):
    def train(seen):
        optimizer = sgd(seen.model)
        for step, x in enumerate(inputs(4)):
            loss = seen.loss(x)
            (loss * math.nan if step == 2 else loss).backward()
            if step == 2:
                optimizer.zero_grad()
                continue
            seen.received(loss)
            optimizer.step()
            optimizer.zero_grad()

    steps = compare(tmp_path, train)
    assert steps["num_backward"].tolist() == [1, 1, 2]
    assert steps["num_discarded"].tolist() == [0, 0, 1]


def test_returned_gradients_make_a_step_where_an_optimizer_receives_them(tmp_path):
    torch.manual_seed(0)
    model = net()
    optimizer = sgd(model)
    losses, norms = [], []
    with analyzer.Recorder(model, tmp_path / "run"):
        for x in inputs(4):
            loss = model(x).square().mean()
            parameters = list(model.parameters())
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p.grad = g
            losses.append(loss.item())
            norms.append(model[0].weight.grad.norm().item())
            optimizer.step()
    run = open_run(tmp_path / "run")
    assert run.steps["loss"].tolist() == pytest.approx(losses, rel=1e-6)
    assert run.steps["num_backward"].tolist() == [0] * 4
    found = run.parameter_stats().query("parameter == 0")["gradient_norm"]
    assert found.tolist() == pytest.approx(norms, rel=1e-5)
    said = [text for text in run.manifest["not_recorded"] if "did not come from backward()" in text]
    assert len(said) == 1 and "from step 0 on" in said[0]


def test_gradients_of_function_transforms_make_steps_too(tmp_path):
    model = nn.Linear(4, 2)
    optimizer = sgd(model)

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x,)).square().mean()

    norms = []
    with analyzer.Recorder(model, tmp_path / "run"):
        for x in inputs(3):
            gradients = torch.func.grad(loss)(dict(model.named_parameters()), x)
            for name, p in model.named_parameters():
                p.grad = gradients[name].detach()
            norms.append(model.weight.grad.norm().item())
            optimizer.step()
    run = open_run(tmp_path / "run")
    found = run.parameter_stats().query("parameter == 0")["gradient_norm"]
    assert found.tolist() == pytest.approx(norms, rel=1e-5)


def test_a_gradient_penalty_is_a_part_of_its_step(tmp_path):
    def train(seen):
        optimizer = sgd(seen.model)
        for x in inputs(3):
            x = x.clone().requires_grad_()
            score = seen.model(x).sum()
            slope = torch.autograd.grad(score, x, create_graph=True)[0]
            loss = seen.loss(x.detach()) + (slope.norm() - 1).square()
            optimizer.zero_grad()
            loss.backward()
            seen.received(loss)
            optimizer.step()

    torch.manual_seed(0)
    model, twin = net(), None
    twin = copy.deepcopy(model)
    truth = Truth(twin)
    train(truth)
    with analyzer.Recorder(model, tmp_path / "run"):
        train(Plain(model))
    run = open_run(tmp_path / "run")
    assert run.steps["loss"].tolist() == pytest.approx(truth.losses, rel=1e-6)
    assert run.steps["num_backward"].tolist() == [1] * 3
    found = run.parameter_stats().query("parameter == 0")["gradient_norm"]
    expected = [gradients[0].norm().item() for gradients in truth.gradients]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("every", [1, 2])
def test_each_of_two_recorders_has_its_own_models_steps(tmp_path, every):
    models = net(), net()
    with (
        analyzer.Recorder(models[0], tmp_path / "a", every=every),
        analyzer.Recorder(models[1], tmp_path / "b", every=every),
    ):
        optimizers = [sgd(model) for model in models]
        for step, x in enumerate(inputs(5)):
            for model, optimizer in zip(models, optimizers, strict=True):
                if step < 3 or model is models[0]:
                    model(x).square().mean().backward()
                    optimizer.step()
                    optimizer.zero_grad()
    for name, count in (("a", 5), ("b", 3)):
        steps = open_run(tmp_path / name).steps
        assert steps["num_backward"].tolist() == [1] * count


def test_a_pass_of_parameters_alone_belongs_to_their_recorder(tmp_path):
    model = net()
    optimizer = sgd(model)
    with analyzer.Recorder(model, tmp_path / "run"):
        for x in inputs(2):
            model(x).square().mean().backward()
            sum(p.square().sum() for p in model.parameters()).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert open_run(tmp_path / "run").steps["num_backward"].tolist() == [2, 2]


def test_several_optimizers_and_schedulers_are_told_apart(tmp_path):
    model = net()
    optimizers = [
        torch.optim.SGD(model[0].parameters(), 0.1),
        torch.optim.Adam(model[2].parameters(), 0.2),
    ]
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in optimizers]
    with analyzer.Recorder(model, tmp_path / "run"):
        for x in inputs(3):
            model(x).square().mean().backward()
            for thing in (*optimizers, *schedulers):
                thing.step()
            model.zero_grad()
    steps = open_run(tmp_path / "run").steps
    assert steps["learning_rate"].tolist() == pytest.approx([0.1, 0.05, 0.025])
    assert steps["learning_rate_1"].tolist() == pytest.approx([0.2, 0.1, 0.05])


def test_weights_of_two_models_are_updated_by_an_optimizer_and_by_hand(tmp_path):
    torch.manual_seed(0)
    model = nn.ModuleList([net(), net()])
    optimizer = sgd(model[0])
    losses = []
    with analyzer.Recorder(model, tmp_path / "run"):
        for x in inputs(3):
            for part in model:
                loss = part(x).square().mean()
                losses.append(loss.item())
                loss.backward()
                if part is model[0]:
                    optimizer.step()
                else:
                    update_by_hand(part)
                part.zero_grad()
    steps = open_run(tmp_path / "run").steps
    assert steps["loss"].tolist() == pytest.approx(losses, rel=1e-6)
