"""Twelve scripts of different kinds, plain and recorded: nothing that a script can see differs."""

from pathlib import Path

import pytest

import analyzer
from tests.support.commands import run

BEFORE = """
import hashlib, random, sys
import numpy as np, torch
from torch import nn
from torch.nn import functional as F
torch.manual_seed(0); np.random.seed(0); random.seed(0); torch.set_num_threads(1)

def seen(x):
    if isinstance(x, torch.Tensor):
        return str(x.dtype) + str(tuple(x.shape)) + str(x.detach().to_dense().flatten().tolist())
    if isinstance(x, np.ndarray):
        return str(x.tolist())
    if isinstance(x, dict):
        return "".join(f"{key}:{seen(value)}" for key, value in x.items())
    if isinstance(x, (list, tuple)):
        return "".join(map(seen, x))
    return seen(x.state_dict()) if hasattr(x, "state_dict") else repr(x)

def done(*things):
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    for thing in (*things, *states):
        print(hashlib.sha256(seen(thing).encode()).hexdigest())
    models = [thing for thing in things if isinstance(thing, nn.Module)]
    gradients = [p.grad for model in models for p in model.parameters()]
    print("gradients", hashlib.sha256(seen(gradients).encode()).hexdigest())
"""

SCRIPTS = {
    "mlp": """
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 3))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
for step in range(6):
    loss = F.cross_entropy(model(torch.randn(12, 8)), torch.randint(0, 3, (12,)))
    optimizer.zero_grad(); loss.backward(); optimizer.step(); schedule.step()
    print(step, loss.item(), schedule.get_last_lr())
done(model, optimizer, schedule)
""",
    "residual convolutions with batch norm": """
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
    def forward(self, x):
        x = x + F.relu(self.norm(self.conv(x)), inplace=True)
        return x
blocks = [Block() for _ in range(3)]
head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
model = nn.Sequential(nn.Conv2d(3, 6, 3), *blocks, *head)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
for step in range(4):
    x, y = torch.randn(8, 3, 9, 9), torch.randint(0, 4, (8,))
    loss = F.cross_entropy(model(x), y, label_smoothing=0.1)
    optimizer.zero_grad(set_to_none=False); loss.backward(); optimizer.step()
    model.eval()
    with torch.no_grad(): print(loss.item(), model(torch.ones(1, 3, 9, 9)).sum().item())
    model.train()
done(model, optimizer)
""",
    "dropout, a frozen part and a new group": """
middle = nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 16), nn.Dropout(0.5)
model = nn.Sequential(nn.Linear(8, 16), *middle, nn.Linear(16, 2))
for p in model[0].parameters(): p.requires_grad_(False)
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.01)
for step in range(6):
    if step == 3:
        for p in model[0].parameters(): p.requires_grad_(True)
        optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.001})
    loss = (model(torch.randn(10, 8)) - torch.rand(10, 2)).abs().mean()
    loss.backward(); optimizer.step(); optimizer.zero_grad()
    print(random.random(), np.random.rand(), loss.item())
done(model, optimizer)
""",
    "recurrent with clipping": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(12, 20)
        self.lstm = nn.LSTM(8, 12, 2, batch_first=True, dropout=0.1)
    def forward(self, x, state=None):
        y, state = self.lstm(self.embed(x), state)
        return self.head(y), state
model = Net(); optimizer = torch.optim.RMSprop(model.parameters(), lr=0.01); state = None
for step in range(5):
    x = torch.randint(0, 20, (4, 7))
    if state is not None: state = tuple(s.detach() for s in state)
    y, state = model(x[:, :-1], state)
    loss = F.cross_entropy(y.flatten(0, 1), x[:, 1:].flatten())
    optimizer.zero_grad(); loss.backward()
    print(float(nn.utils.clip_grad_norm_(model.parameters(), 0.1)), loss.item()); optimizer.step()
done(model, optimizer)
""",
    "transformer": """
layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
model = nn.Sequential(nn.Linear(5, 16), encoder, nn.LayerNorm(16), nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, foreach=True)
average = torch.optim.swa_utils.AveragedModel(model)
for step in range(4):
    loss = model(torch.randn(3, 6, 5)).square().mean()
    optimizer.zero_grad(); loss.backward()
    nn.utils.clip_grad_value_(model.parameters(), 0.01); optimizer.step()
    average.update_parameters(model)
    print(loss.item())
done(model, optimizer, average)
""",
    "two networks against each other": """
g = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
first = nn.utils.spectral_norm(nn.Linear(2, 16))
d = nn.Sequential(first, nn.LeakyReLU(0.2, inplace=True), nn.Linear(16, 1))
og, od = torch.optim.Adam(g.parameters(), 1e-3, (0.5, 0.9)), torch.optim.Adam(d.parameters(), 1e-3)
for step in range(5):
    real, fake = torch.randn(8, 2), g(torch.randn(8, 3))
    between = (real + torch.rand(8, 1) * (fake.detach() - real)).requires_grad_()
    (slope,) = torch.autograd.grad(d(between).sum(), between, create_graph=True)
    loss = d(fake.detach()).mean() - d(real).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()
    od.zero_grad(); loss.backward(); od.step()
    fooled = -d(fake).mean()
    og.zero_grad(); fooled.backward(); og.step()
    print(loss.item(), fooled.item())
done(g, d, og, od)
""",
    "accumulation, its own modes, and an exit code": """
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
class Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        print("function", getattr(function, "__name__", function))
        return function(*args, **(kwargs or {}))
class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        print("operation", function); return function(*args, **(kwargs or {}))
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)).bfloat16()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(5):
    with Functions() if step in (0, 3) else Operations():
        for part in range(3):
            (model(torch.randn(4, 8, dtype=torch.bfloat16)).float().square().mean() / 3).backward()
        optimizer.step(); optimizer.zero_grad()
done(model, optimizer)
sys.exit(3)
""",
    "closure": """
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
x, y = torch.randn(16, 4), torch.randn(16, 1)
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")
evaluations = 0
for step in range(3):
    def closure():
        global evaluations
        evaluations += 1
        optimizer.zero_grad(); loss = F.mse_loss(model(x), y); loss.backward(); return loss
    print(optimizer.step(closure).item(), evaluations)
done(model, optimizer)
raise ValueError("the script's own error")
""",
    "gradient scaler": """
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=2)
for step in range(6):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(torch.randn(8, 8)).float().square().mean()
    optimizer.zero_grad()
    scaler.scale(loss * (1e36 if step == 2 else 1)).backward()
    scaler.unscale_(optimizer); nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer); scaler.update()
    print(loss.item(), scaler.get_scale())
done(model, optimizer, scaler)
""",
    "compiled": """
from torch._dynamo.utils import counters
class Block(nn.Module):
    def __init__(self): super().__init__(); self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
    def forward(self, x): return x + self.b(torch.relu(self.a(x)))
def trained(model, call, rows=(6, 6, 6)):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for n in rows:
        loss = call(torch.randn(n, 8), torch.randint(0, 8, (n,)))
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    kinds = "stats", "frames", "graph_break", "recompiles", "unimplemented"
    print(loss.item(), {kind: dict(counters[kind]) for kind in kinds})
    done(model, optimizer)
def net(): return nn.Sequential(Block(), Block())
def loss_of(model): return lambda x, y: F.cross_entropy(model(x), y)
whole = net(); trained(whole, loss_of(torch.compile(whole, backend="eager")), (6, 6, 7, 8))
inside = net(); inside[1].compile(backend="eager"); trained(inside, loss_of(inside))
leaf = net(); leaf[0].a.compile(backend="eager"); trained(leaf, loss_of(leaf))
part = net(); part[0] = torch.compile(part[0], backend="eager"); trained(part, loss_of(part))
by_step = net(); trained(by_step, torch.compile(loss_of(by_step), backend="eager"))
place = net(); place.compile(backend="eager", fullgraph=True); trained(place, loss_of(place))
""",
    "functions of weights, traces and exports": """
from torch.func import functional_call, grad, vmap
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def loss_of(weights, x): return functional_call(model, weights, (x,)).square().mean()
x = torch.randn(6, 4)
for step in range(3):
    weights = {name: p.detach() for name, p in model.named_parameters()}
    each = vmap(grad(loss_of), (None, 0))(weights, x)
    print(seen(each)[:60])
    model(x).square().mean().backward(); optimizer.step(); optimizer.zero_grad()
    print(torch.jit.trace(model, torch.randn(2, 4)).graph)
    print(torch.fx.symbolic_trace(model).code, make_fx(model)(x).code)
    with FakeTensorMode(allow_non_fake_inputs=True): print(model(torch.randn(2, 4)).shape)
print(torch.export.export(model, (x,)).graph)
done(model, optimizer)
""",
    "loader with workers and a deep call": """
from torch.utils.data import DataLoader, TensorDataset
generator = torch.Generator().manual_seed(7)
data = TensorDataset(torch.randn(40, 8), torch.randint(0, 2, (40,)))
loader = DataLoader(data, batch_size=10, shuffle=True, num_workers=2, generator=generator)
model = nn.Sequential(nn.Embedding(4, 8, sparse=True), nn.Linear(8, 2))
optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
def depth(n=0):
    try: return depth(n + 1)
    except RecursionError: return n
print(depth(), sys.getrecursionlimit())
for epoch in range(2):
    for x, y in loader:
        loss = F.cross_entropy(model((x[:, 0] > 0).long()), y)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        print(loss.item())
sys.setrecursionlimit(1300)
print(depth(), sys.getrecursionlimit())
deep = nn.Linear(4, 4)
for level in range(230): deep = nn.Sequential(deep)
optimizer = torch.optim.SGD(deep.parameters(), 0.1)
sys.setrecursionlimit(1000)
for step in range(3):
    loss = deep(torch.randn(3, 4)).square().mean()
    loss.backward(); optimizer.step(); print(loss.item())
print(depth(), sys.getrecursionlimit())
done(model, optimizer, {"generator": generator.get_state()})
""",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_sees_nothing_of_the_recorder(name: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(BEFORE + SCRIPTS[name])
    fresh = "deep call" in name  # an interpreter's own frames are counted
    plain = run(tmp_path, "train.py", fresh=fresh)
    ours = run(tmp_path, "-m", "analyzer", "record", "train.py", fresh=fresh)
    assert "gradients" in plain.stdout, plain.stderr
    assert ours.stdout == plain.stdout
    assert ours.returncode == plain.returncode
    own = [line for line in ours.stderr.splitlines(True) if not line.startswith("analyzer: ")]
    assert "".join(own) == plain.stderr
    assert len(analyzer.open_run(tmp_path / "runs" / "train-0").steps) > 2
