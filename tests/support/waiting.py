"""A model file whose training waits while a file is there, and who waits for it."""

import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["MODEL", "lines", "until"]

# It waits while ``wait``, or a file that names its point, is there; what begins and what ends is
# written down.
MODEL = """
import os, time, torch
from torch import nn

class Block(nn.Module):
    def __init__(self, shortcuts):
        super().__init__()
        self.linear, self.shortcuts = nn.Linear(8, 8), shortcuts

    def forward(self, x):
        y = torch.relu(self.linear(x))
        return x + y if self.shortcuts else y

def write(name):
    with open(name, "a") as file:
        file.write(point + "\\n")

def build_model(depth, shortcuts):
    global point
    point = f"{depth} {shortcuts}"
    if depth == 9:
        raise RuntimeError("nine is too deep")
    blocks = [Block(shortcuts) for _ in range(depth)]
    return nn.Sequential(nn.Linear(4, 8), *blocks, nn.Linear(8, 2))

def batches():
    write("begun")
    while os.path.exists("wait") or os.path.exists(f"wait {point}"):
        time.sleep(0.02)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        x = torch.randn(16, 4, generator=generator)
        yield x, (x.sum(1) > 0).long()
    write("ended")
"""


def lines(folder: Path, name: str) -> list[str]:
    path = folder / name
    return path.read_text().splitlines() if path.exists() else []


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
