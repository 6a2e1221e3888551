"""Joins of Hugging Face models built from small random configurations; nothing is downloaded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from analyzer.joins.find import find_joins

transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.slow,  # the library itself takes ten seconds to import
    pytest.mark.filterwarnings("ignore"),
]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def ids(length: int = 5) -> torch.Tensor:
    return torch.randint(30, (2, length))


def gpt2() -> tuple[Any, dict[str, torch.Tensor]]:
    config = transformers.GPT2Config(vocab_size=30, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config), {"input_ids": ids()}


def bert() -> tuple[Any, dict[str, torch.Tensor]]:
    config = transformers.BertConfig(vocab_size=30, intermediate_size=32, **SMALL)
    inputs = {"input_ids": ids(), "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])}
    return transformers.BertModel(config), inputs


def vit() -> tuple[Any, dict[str, torch.Tensor]]:
    config = transformers.ViTConfig(image_size=8, patch_size=4, intermediate_size=32, **SMALL)
    return transformers.ViTModel(config), {"pixel_values": torch.randn(2, 3, 8, 8)}


def llama() -> tuple[Any, dict[str, torch.Tensor]]:
    config = transformers.LlamaConfig(
        vocab_size=30, intermediate_size=32, num_key_value_heads=1, **SMALL
    )
    return transformers.LlamaForCausalLM(config), {"input_ids": ids()}


def t5() -> tuple[Any, dict[str, torch.Tensor]]:
    config = transformers.T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    inputs = {"input_ids": ids(), "decoder_input_ids": ids(4)}
    return transformers.T5ForConditionalGeneration(config), inputs


def resnet() -> tuple[Any, dict[str, torch.Tensor]]:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic"
    )
    return transformers.ResNetModel(config), {"pixel_values": torch.randn(2, 3, 16, 16)}


def gpt2_block(block: str) -> list[tuple[str, list[str]]]:
    return [
        (f"{block}#0", ["ln_1", "attn.c_attn", "attn.c_proj", "attn.resid_dropout"]),
        (f"{block}#1", ["ln_2", "mlp.c_fc", "mlp.act", "mlp.c_proj", "mlp.dropout"]),
    ]


def bert_block(block: str) -> list[tuple[str, list[str]]]:
    attention = [*(f"self.{name}" for name in ("query", "key", "value")), "output.dense"]
    mlp = ["intermediate.dense", "intermediate.intermediate_act_fn", "output.dense"]
    return [
        (f"{block}.attention", [*attention, "output.dropout"]),
        (block, [*mlp, "output.dropout"]),
    ]


def t5_layer(kind: str) -> list[str]:
    names = ["wi", "act", "dropout", "wo"] if kind == "DenseReluDense" else list("qkvo")
    return ["layer_norm", *(f"{kind}.{name}" for name in names), "dropout"]


def relative(joins: list[Any]) -> list[tuple[str, list[str]]]:
    """Names of joins, and of their branch layers below that name."""
    return [
        (j.name, [layer.removeprefix(j.name.split("#")[0] + ".") for layer in j.branch_layers])
        for j in joins
    ]


def joins_of(family: Callable[[], tuple[Any, dict[str, torch.Tensor]]]) -> list[Any]:
    model, inputs = family()
    return find_joins(model, **inputs)


def test_gpt2_has_two_joins_a_block() -> None:
    expected = [*gpt2_block("transformer.h.0"), *gpt2_block("transformer.h.1")]
    assert relative(joins_of(gpt2)) == expected


def test_bert_has_two_joins_a_layer() -> None:
    expected = [*bert_block("encoder.layer.0"), *bert_block("encoder.layer.1")]
    assert relative(joins_of(bert)) == expected


def test_vit_has_two_joins_a_layer() -> None:
    joins = joins_of(vit)
    assert [join.name for join in joins] == [f"layers.{i}#{k}" for i in (0, 1) for k in (0, 1)]
    assert [len(join.branch_layers) for join in joins] == [6, 5, 6, 5]


def test_llama_has_two_joins_a_layer() -> None:
    projections = [f"self_attn.{name}_proj" for name in "qkvo"]
    expected = [
        ("#0", ["input_layernorm", *projections]),
        (
            "#1",
            ["post_attention_layernorm"]
            + [f"mlp.{name}" for name in ("gate_proj", "act_fn", "up_proj", "down_proj")],
        ),
    ]
    assert relative(joins_of(llama)) == [
        (f"model.layers.{block}{number}", layers) for block in (0, 1) for number, layers in expected
    ]


def test_t5_has_two_joins_an_encoder_block_and_three_a_decoder_block() -> None:
    kinds = {
        "encoder": ("SelfAttention", "DenseReluDense"),
        "decoder": ("SelfAttention", "EncDecAttention", "DenseReluDense"),
    }
    assert relative(joins_of(t5)) == [
        (f"{side}.block.{block}.layer.{place}", t5_layer(kind))
        for side in kinds
        for block in (0, 1)
        for place, kind in enumerate(kinds[side])
    ]


def test_resnet_projects_where_a_stage_changes_the_shape() -> None:
    joins = joins_of(resnet)
    assert [join.shortcut for join in joins] == ["identity", "identity", "projection", "identity"]
    assert [join.name for join in joins] == [
        f"encoder.stages.{stage}.layers.{block}" for stage in (0, 1) for block in (0, 1)
    ]
    assert [layer.rsplit(".", 1)[1] for layer in joins[2].shortcut_layers] == [
        "convolution",
        "normalization",
    ]


@pytest.mark.parametrize("family", [gpt2, bert, vit, llama, t5], ids=lambda family: family.__name__)
def test_shortcuts_of_transformers_are_identities(
    family: Callable[[], tuple[Any, dict[str, torch.Tensor]]],
) -> None:
    for join in joins_of(family):
        assert (join.operation, join.shortcut, join.shortcut_layers) == ("add", "identity", [])
