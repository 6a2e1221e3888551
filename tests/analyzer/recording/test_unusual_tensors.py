"""Tensors that are no plain array of numbers: read rightly, or named with a reason."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import analyzer
from analyzer.recording.invocation import Invocation
from analyzer.recording.plain import UnreadableError, plain
from analyzer.recording.statistics import HAS_QUICK_WAYS, activation_row, gradient_row
from analyzer.storage.run import open_run
from tests.support import commands


class Named(torch.Tensor):
    """A subclass that only adds functions."""


class Wrapped(torch.Tensor):
    """A subclass that keeps its values in another tensor."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        unwrap = [x.inner if isinstance(x, Wrapped) else x for x in args]
        return cls(func(*unwrap, **(kwargs or {})))


def nested():
    with warnings.catch_warnings(action="ignore"):
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def freed():
    x = torch.ones(8)
    x.untyped_storage().resize_(0)
    return x


def fake():
    with FakeTensorMode():
        return torch.ones(3)


def quantized():
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)


UNREADABLE = {
    "FakeTensor": fake,
    "Wrapped": lambda: Wrapped(torch.ones(3)),
    "nested": nested,
    "quantized": quantized,
    "meta": lambda: torch.ones(4, device="meta"),
    "without memory": freed,
    "without memory ": lambda: torch._to_functional_tensor(torch.ones(4)),
}


@pytest.mark.parametrize("words", UNREADABLE)
def test_what_has_no_values_is_refused_in_words(words):
    x = UNREADABLE[words]()
    for read in (plain, lambda x: activation_row(x, None), gradient_row):
        with pytest.raises(UnreadableError, match=f"^it is .*{words.strip()}"):
            read(x)


VALUES = torch.tensor([-3.0, 0.0, 1.0, 2.0])
READABLE = {
    "subclass": lambda: VALUES.as_subclass(Named),
    "parameter": lambda: nn.Parameter(VALUES),
    "negated": lambda: torch._neg_view(-VALUES),
    "imaginary part of a conjugate": lambda: torch.complex(VALUES, -VALUES).conj().imag,
    "strided": lambda: torch.stack([VALUES, VALUES], 1)[:, 0],
    "bfloat16": VALUES.bfloat16,
    "float16": VALUES.half,
    "float64": VALUES.double,
    "sparse": lambda: VALUES.to_sparse(),
    "compressed": lambda: VALUES.reshape(2, 2).to_sparse_csr(),
    "uncoalesced": lambda: torch.sparse_coo_tensor(
        [[0, 0, 2, 3]], torch.tensor([-1.0, -2.0, 1.0, 2.0]), (4,)
    ),
    "mkldnn": VALUES.to_mkldnn,
    "complex": lambda: torch.complex(torch.zeros(4), VALUES),
    "conjugated": lambda: torch.complex(torch.zeros(4), VALUES).conj(),
    "half complex": lambda: torch.complex(torch.zeros(4), VALUES).to(torch.complex32),
    "transposed": lambda: VALUES.reshape(2, 2).t(),
}


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:Complex")
@pytest.mark.parametrize("kind", READABLE)
def test_the_moments_of_every_other_tensor_are_those_of_its_values(kind):
    row = gradient_row(READABLE[kind]())
    numbers = tuple(row.numbers)
    assert row.elements == 4
    assert numbers[:3] == pytest.approx((math.sqrt(14), 1.5, 3.0))
    if "parse" not in kind and "coalesced" not in kind and kind != "compressed":
        assert numbers[3] == 1
    assert numbers[4] == 0


def test_a_negated_view_has_the_mean_of_what_it_shows():
    assert activation_row(torch._neg_view(torch.tensor([3.0, 1.0])), None).numbers.mean == -2


class Returns(nn.Module):
    """A layer whose output has another class; the next one takes the values back."""

    def __init__(self, wrap, unwrap):
        super().__init__()
        self.first, self.odd, self.back = nn.Linear(6, 6), Odd(wrap), Odd(unwrap)
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.back(self.odd(self.first(x))))


class Odd(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def trained(model, steps=3):
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()


def recorded(model, path):
    twin = copy.deepcopy(model)
    trained(twin)
    with analyzer.Recorder(model, path):
        trained(model)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    return open_run(path)


def stats_by_layer(run):
    names = dict(zip(run.layers["layer"], run.layers["name"], strict=True))
    return {names[layer]: rows for layer, rows in run.layer_stats().groupby("layer")}


def _ragged(x):
    return torch.nested.as_nested_tensor(list(x.unbind()), layout=torch.strided)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_layer_that_returns_a_nested_tensor_is_named_and_the_others_are_recorded(tmp_path):
    run = recorded(Returns(_ragged, lambda x: x.to_padded_tensor(0.0)), tmp_path / "run")
    assert sorted(stats_by_layer(run)) == ["back", "first", "last"]
    assert (run.layer_stats()["output_gradient_norm"] > 0).all()
    (sentence,) = [s for s in run.manifest["not_recorded"] if s.startswith("layer")]
    assert sentence == "layer odd: it is a nested tensor, which has no one shape"


def test_a_layer_that_returns_a_subclass_with_memory_is_recorded(tmp_path):
    class Back(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.as_subclass(torch.Tensor) * 1

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    run = recorded(Returns(lambda x: x.as_subclass(Named), Back.apply), tmp_path / "run")
    of = stats_by_layer(run)
    assert of["odd"]["activation_norm"].tolist() == of["first"]["activation_norm"].tolist()
    assert of["odd"]["output_gradient_norm"].tolist() == of["back"]["output_gradient_norm"].tolist()
    assert not [s for s in run.manifest["not_recorded"] if s.startswith("layer")]


def test_a_call_on_the_meta_device_is_said_and_the_training_after_it_is_recorded(tmp_path):
    model = nn.Sequential(nn.Linear(6, 3, device="meta"), nn.Tanh())
    with analyzer.Recorder(model, tmp_path / "run"):
        model(torch.empty(2, 6, device="meta"))
        model.to_empty(device="cpu")
        nn.init.ones_(model[0].weight), nn.init.zeros_(model[0].bias)
        trained(model)
    run = open_run(tmp_path / "run")
    assert run.layers["name"].tolist() == ["0", "1"]
    assert (run.layer_stats()["activation_norm"] > 0).all()
    assert any("on the meta device" in sentence for sentence in run.manifest["not_recorded"])


DISTRIBUTED = """
import sys, torch, analyzer
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
torch.manual_seed(0)
model, x = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)), torch.randn(4, 8)
model = distribute_module(model, mesh)
with analyzer.Recorder(model, "run", updates_every=1):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        loss = model(distribute_tensor(x, mesh, [Replicate()])).pow(2).mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
"""


def test_a_distributed_tensor_has_the_numbers_of_this_ranks_part(tmp_path):
    (tmp_path / "train.py").write_text(DISTRIBUTED)
    done = commands.run(tmp_path, "train.py", str(tmp_path / "rendezvous"), timeout=120)
    assert done.returncode == 0, done.stderr
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)), torch.randn(4, 8)
    run, optimizer = open_run(tmp_path / "run"), torch.optim.SGD(model.parameters(), 0.1)
    layers, parameters = run.layer_stats(), run.parameter_stats()
    for step in range(3):
        outputs = [model[0](x)]
        outputs += [model[1](outputs[0])]
        outputs += [model[2](outputs[1])]
        for output in outputs:
            output.retain_grad()
        loss = outputs[-1].pow(2).mean()
        optimizer.zero_grad(), loss.backward()
        weights = [p.detach().clone() for p in model.parameters()]
        gradients = [p.grad.norm().item() for p in model.parameters()]
        optimizer.step()
        moved = [
            (p.detach() - w).norm().item() for p, w in zip(model.parameters(), weights, strict=True)
        ]
        of, by = layers[layers["step"] == step], parameters[parameters["step"] == step]
        assert run.steps["loss"][step] == pytest.approx(loss.item(), rel=1e-5)
        assert of["activation_norm"].tolist() == pytest.approx([o.norm().item() for o in outputs])
        found = of["output_gradient_norm"].tolist()
        assert found == pytest.approx([o.grad.norm().item() for o in outputs], rel=1e-5)
        assert by["gradient_norm"].tolist() == pytest.approx(gradients, rel=1e-5)
        assert by["update_norm"].tolist() == pytest.approx(moved, rel=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_of_a_model_is_the_same_while_its_shortcuts_are_scaled():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Linear(6, 6)

        def forward(self, x):
            return x + self.branch(x)

    model, x = Residual(), torch.randn(2, 6)

    def traced():
        trace = torch.jit.trace(model, x, check_trace=False)  # which compares it with a call
        return torch.fx.symbolic_trace(model).code, trace.code

    codes = traced()
    with analyzer.skip_scale(model, 0.5):
        assert traced() == codes
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert model(torch.ones(2, 6)).shape == (2, 6)
        assert torch.equal(model(x), model.branch(x) + 0.5 * x)


@pytest.mark.skipif(not HAS_QUICK_WAYS, reason="built without a compiler")
class TestQuickWays:
    """What the compiled part does with errors: ours are forgotten, an interrupt is not."""

    def gate(self, error):
        from analyzer.recording.hook_classes import Gate, Layer

        class Invocation:
            @property
            def calls(self):
                raise error

        gate, layer, module = Gate(), Layer(), nn.Identity()
        import weakref

        layer.module, layer.shape, layer.is_ready = weakref.ref(module), (2, 3), True
        gate.layers[id(module)], gate.listening, gate.current = layer, True, Invocation()
        return gate, module

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_an_interrupt_is_passed_on(self, error):
        gate, module = self.gate(error)
        with pytest.raises(error):
            gate.take(module, torch.arange(6.0).reshape(2, 3))

    def test_another_error_leaves_the_call_to_the_careful_way(self):
        gate, module = self.gate(ValueError)
        assert gate.take(module, torch.arange(6.0).reshape(2, 3)) is False

    @pytest.mark.parametrize("kind", ["Wrapped", "FakeTensor", "quantized", "meta", "nested"])
    def test_no_unusual_tensor_is_read_by_pointer(self, kind):
        from analyzer.recording.hook_classes import parameters

        norms, gradients = parameters([UNREADABLE[kind](), torch.ones(2)])
        assert norms == [None, math.sqrt(2)]
        assert gradients == [None, None]

    def test_a_negated_view_is_left_to_the_careful_way(self):
        gate, module = self.gate(ValueError)
        gate.current = Invocation(0, 0)
        x = torch.arange(6.0).reshape(2, 3)
        assert gate.take(module, torch._neg_view(x)) is False
        assert gate.take(module, x) is True
