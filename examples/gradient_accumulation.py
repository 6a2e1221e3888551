"""Four micro-batches per update: they are pooled, so that a step reads as one large batch.

Example:
    python examples/gradient_accumulation.py runs/accumulation
    analyzer diagnose runs/accumulation
"""

import sys

import torch
from torch import nn

import analyzer

MICRO_BATCHES = 4


def main(folder: str) -> None:
    """Record a training that accumulates gradients, then read the run."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with analyzer.Recorder(model, folder, probe=["noise"]) as recorder:
        for _ in range(20):
            optimizer.zero_grad()
            for _ in range(MICRO_BATCHES):
                x = torch.randn(8, 16)
                loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
                (loss / MICRO_BATCHES).backward()
            # Before clipping: the run holds the norm before it, and the factor by which it was cut.
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            recorder.log(my_norm=norm.item())
            optimizer.step()

    run = analyzer.open_run(folder)
    print(run.steps[["step", "loss", "num_backward", "gradient_norm", "clip_factor", "my_norm"]])
    print(run.probe("noise"))


if __name__ == "__main__":
    main(sys.argv[1])
