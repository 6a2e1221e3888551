"""A training with a gradient scaler has the numbers of the loss that the user wrote."""

import copy
import math

import pytest
import torch
from torch import nn

import analyzer
from analyzer.recording.scaling import scale_of, unwatch_scalers, watch_scalers
from analyzer.storage.run import open_run

OPTIMIZERS = {
    "fused": lambda held: torch.optim.AdamW(held, 1e-2, fused=True),
    "foreach": lambda held: torch.optim.AdamW(held, 1e-2, foreach=True),
    "plain": lambda held: torch.optim.SGD(held, 0.1),
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.branch(x).tanh())


def scaler_of(device="cpu"):
    return torch.amp.GradScaler(device, init_scale=2.0**10, growth_interval=3)


def inputs(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 4, generator=generator) for _ in range(count)]


def train(model, kind, scaler, *, clips=False, micro=1, bad=(), dtype=None, device="cpu"):
    """Train; return by step the loss, the norms of the unscaled gradients, and the scales."""
    optimizer = OPTIMIZERS[kind](model.parameters())
    facts = []
    for step, x in enumerate(inputs(6)):
        optimizer.zero_grad()
        total = 0.0
        for _ in range(micro):
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                loss = model(x.to(device)).float().square().mean() / micro
            loss = loss * math.inf if step in bad else loss
            total += loss.detach()
            (loss if scaler is None else scaler.scale(loss)).backward()
        scale = 1.0 if scaler is None else scaler.get_scale()
        if clips:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        divisor = 1.0 if clips else scale
        norms = [(p.grad / divisor).norm().item() for p in model.parameters()]
        facts.append((float(total), norms, scale))
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    return facts


def equal(found, expected, rel=1e-5):
    assert list(found) == pytest.approx(list(expected), rel=rel, nan_ok=True)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("micro", [1, 2])
def test_a_scaled_training_has_the_numbers_of_an_unscaled_one(tmp_path, kind, clips, micro):
    torch.manual_seed(0)
    model = Block()
    plain = copy.deepcopy(model)
    options = {"clips": clips, "micro": micro}
    with analyzer.Recorder(plain, tmp_path / "plain", splits_every=1):
        train(plain, kind, None, **options)
    with analyzer.Recorder(model, tmp_path / "scaled", splits_every=1):
        facts = train(model, kind, scaler_of(), **options)
    expected, found = open_run(tmp_path / "plain"), open_run(tmp_path / "scaled")
    assert found.steps["grad_scale"].tolist() == [scale for *_, scale in facts]
    assert expected.steps["grad_scale"].isna().all() and not found.steps["skipped"].any()
    for column in ("loss", "gradient_norm", "clip_factor", "num_backward", "num_discarded"):
        equal(found.steps[column], expected.steps[column])
    for read in ("layer_stats", "parameter_stats", "splits"):
        ours, theirs = getattr(found, read)(), getattr(expected, read)()
        assert len(ours) == len(theirs) > 0
        for column in theirs.select_dtypes("number").columns.drop("update_norm", errors="ignore"):
            equal(ours[column], theirs[column], rel=1e-4)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("clips", [False, True])
def test_a_skipped_update_is_a_step_of_its_own(tmp_path, kind, clips):
    torch.manual_seed(0)
    model = Block()
    with analyzer.Recorder(model, tmp_path / "run"):
        facts = train(model, kind, scaler_of(), clips=clips, bad=[2])
    run = open_run(tmp_path / "run")
    assert run.steps["skipped"].tolist() == [False, False, True, False, False, False]
    equal(run.steps["loss"], [loss for loss, *_ in facts], rel=1e-6)
    stats = run.parameter_stats()
    for number in range(6):
        found = stats[stats["parameter"] == number]["gradient_norm"]
        equal(found, [norms[number] for _, norms, _ in facts], rel=1e-4)
    assert run.steps["grad_scale"].tolist() == [scale for *_, scale in facts]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_output_gradients_of_half_precision_are_unscaled(tmp_path, dtype):
    torch.manual_seed(0)
    model = Block()
    twin = copy.deepcopy(model)
    scaler, seen = scaler_of(), []

    def take(module, args, output):
        output.register_hook(lambda g: seen.append(g.double().norm().item() / scaler.get_scale()))

    twin.branch.register_forward_hook(take)
    train(twin, "plain", scaler, dtype=dtype)
    with analyzer.Recorder(model, tmp_path / "run"):
        train(model, "plain", scaler_of(), dtype=dtype)
    run = open_run(tmp_path / "run")
    layer = run.layers[run.layers["name"] == "branch"]["layer"].iloc[0]
    found = run.layer_stats().query(f"layer == {layer}")["output_gradient_norm"]
    equal(found, seen, rel=1e-6)


def test_several_optimizers_share_a_scaler(tmp_path):
    torch.manual_seed(0)
    model = Block()
    optimizers = [OPTIMIZERS["fused"](model.first.parameters())]
    optimizers += [OPTIMIZERS["plain"](model.branch.parameters())]
    optimizers += [OPTIMIZERS["foreach"](model.last.parameters())]
    scaler, norms = scaler_of(), []
    with analyzer.Recorder(model, tmp_path / "run"):
        for x in inputs(4):
            scaler.scale(model(x).square().mean()).backward()
            norms.append([p.grad.norm().item() / scaler.get_scale() for p in model.parameters()])
            for optimizer in optimizers[1:]:
                scaler.unscale_(optimizer)
            for optimizer in optimizers:
                scaler.step(optimizer)
                optimizer.zero_grad()
            scaler.update()
    run = open_run(tmp_path / "run")
    stats = run.parameter_stats()
    assert len(run.steps) == 4
    for number in range(6):
        found = stats[stats["parameter"] == number]["gradient_norm"]
        equal(found, [row[number] for row in norms])


def test_a_discarded_pass_may_be_scaled(tmp_path):
    torch.manual_seed(0)
    model = Block()
    optimizer, scaler, losses = OPTIMIZERS["plain"](model.parameters()), scaler_of(), []
    with analyzer.Recorder(model, tmp_path / "run"):
        for x in inputs(3):
            scaler.scale(model(x).sum()).backward()
            optimizer.zero_grad()
            loss = model(x).square().mean()
            losses.append(loss.item())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    steps = open_run(tmp_path / "run").steps
    equal(steps["loss"], losses)
    assert steps["num_discarded"].tolist() == [1, 1, 1]


def test_a_scale_is_found_below_a_sum_and_a_division():
    watch_scalers(None)
    try:
        scaler = scaler_of()
        x = torch.ones((), requires_grad=True)
        assert scale_of([(scaler.scale(x * 2) / 4 + scaler.scale(x.exp())).mean()]) == 1024.0
        assert scale_of([(x * 2 + 3).exp()]) is None
        assert [scale_of([one]) for one in scaler.scale([x * 2, x * 3])] == [1024.0] * 2
    finally:
        unwatch_scalers(None)


def test_a_scaler_of_the_program_is_watched_and_nothing_is_left_behind(tmp_path):
    methods = ("scale", "unscale_", "step")
    before = [vars(torch.amp.GradScaler)[name] for name in methods]
    model = Block()
    optimizer = OPTIMIZERS["plain"](model.parameters())
    with analyzer.Recorder(model, tmp_path / "run"):

        class Own(torch.amp.GradScaler):
            def scale(self, outputs):
                if self._scale is None:
                    self._lazy_init_scale_growth_tracker(outputs.device)
                return outputs * self._scale

        own = vars(Own)["scale"]
        scaler, losses = Own("cpu", init_scale=256.0), []
        for x in inputs(2):
            loss = model(x).square().mean()
            losses.append(loss.item())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert [vars(torch.amp.GradScaler)[name] for name in methods] == before
    assert vars(Own)["scale"] is own
    equal(open_run(tmp_path / "run").steps["loss"], losses)


def on_a_device(model, simulation, facts):
    """Scaled losses of two micro-batches, the first of three zeroed in place."""
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), scaler_of(simulation.DEVICE)
    for x in inputs(6):
        simulation.reset_counts()
        x = x.to(simulation.DEVICE)
        for micro in range(3):
            scaler.scale(model(x).square().mean() / (micro + 1)).backward()
            if micro == 0:
                optimizer.zero_grad(set_to_none=False)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        facts.append(simulation.waits())


def test_on_a_device_no_step_waits_for_a_scale_or_a_discarded_pass(tmp_path):
    from tests.support import simulated_accelerator as simulation

    torch.manual_seed(0)
    model = Block().to(simulation.DEVICE)
    bare, waits, bare_waits = copy.deepcopy(model), [], []
    on_a_device(bare, simulation, bare_waits)
    with analyzer.Recorder(model, tmp_path / "run"):
        on_a_device(model, simulation, waits)
    assert waits[1:] == bare_waits[1:]
    steps = open_run(tmp_path / "run").steps
    assert steps["num_backward"].tolist() == [3] * 6
    assert steps["num_discarded"].tolist() == [1] * 6
    assert steps["grad_scale"].tolist() == [1024.0] * 6
    losses = []
    torch.manual_seed(0)
    twin = Block()
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    for x in inputs(6):
        loss = twin(x).square().mean() * (1 / 2 + 1 / 3)
        losses.append(loss.item())
        (loss * 1024).backward()
        optimizer.step()
        optimizer.zero_grad()
    equal(steps["loss"], losses)


def probed(folder, name, *, micro=1):
    """Return what a probe finds in the same training without and with a scaler."""
    found = []
    for kind, scaler in (("plain", None), ("scaled", scaler_of())):
        torch.manual_seed(0)
        model = Block()
        with analyzer.Recorder(model, folder / kind, probe=name):
            train(model, "plain", scaler, micro=micro)
        found.append(open_run(folder / kind).probe(name.partition(":")[0]))
    return found


def test_the_noise_of_scaled_micro_batches_is_that_of_the_loss(tmp_path):
    found = [rows[rows["step"] > 0] for rows in probed(tmp_path, "noise:1", micro=2)]
    assert len(found[0]) > 0
    for column in ("signal_norm", "noise_trace"):
        equal(found[1][column], found[0][column], rel=1e-4)


def test_a_probe_sees_the_loss_without_its_scale(tmp_path):
    found = probed(tmp_path, "paths:2")
    assert len(found[0]) == len(found[1]) > 4
    equal(found[1]["gradient_norm"], found[0]["gradient_norm"], rel=1e-4)
