"""A small GPT-2 of Hugging Face, built from a configuration: nothing is downloaded.

Every block has two joins, behind its attention and behind its MLP.

Example:
    python examples/hugging_face.py runs/gpt2
    analyzer dashboard runs/gpt2
"""

import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import analyzer


def main(folder: str) -> None:
    """Train the language model on random tokens and say what its shortcuts carry."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=3,
        n_head=2,
        n_embd=32,
        n_positions=16,
        vocab_size=64,
        bos_token_id=0,
        eos_token_id=0,
        loss_type="ForCausalLM",
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with analyzer.Recorder(model, folder, splits_every=1):
        for _ in range(10):
            tokens = torch.randint(64, (4, 16))
            optimizer.zero_grad()
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()

    run = analyzer.open_run(folder)
    shares = run.splits().groupby("join")["shortcut_share"].median()
    print(run.joins[["join", "name", "shortcut"]].join(shares, on="join"))


if __name__ == "__main__":
    main(sys.argv[1])
