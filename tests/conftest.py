"""Fixtures that every test shares."""

import signal
import sys
from collections.abc import Iterator

import pytest

# Torch counts its devices at the first backward pass of a process; a device that registers itself
# later has no queue in the engine. So it must be there before any test.
from tests.support import simulated_accelerator  # noqa: F401

# Where the tests run in the background of a shell, interrupts are ignored, and so they would be in
# every program that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _left_behind() -> list[str]:
    """What a recorder would leave behind in this process if it forgot something."""
    if "torch" not in sys.modules:
        return []
    from torch import autograd
    from torch.nn.modules import module
    from torch.nn.utils import clip_grad
    from torch.optim import optimizer

    hooks = {
        name: vars(module)[name] for name in vars(module) if name.startswith("_global_forward")
    } | {
        "optimizer pre-hooks": optimizer._global_optimizer_pre_hooks,
        "optimizer post-hooks": optimizer._global_optimizer_post_hooks,
    }
    found = [f"{name}: {value}" for name, value in hooks.items() if value]
    for function in (
        autograd._engine_run_backward,
        clip_grad._group_tensors_by_device_and_dtype,
        module._has_any_global_hook,
    ):
        if function.__module__.startswith("analyzer"):
            found.append(f"{function.__name__} is replaced")
    return found


@pytest.fixture(autouse=True)
def no_hooks_left() -> Iterator[None]:
    """No test may begin or end with a hook or a replaced function in torch."""
    assert _left_behind() == []
    yield
    assert _left_behind() == []
