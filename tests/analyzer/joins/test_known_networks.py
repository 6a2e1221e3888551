"""The number of joins of known networks, counted from their architecture, with the reason.

Small random configurations of Hugging Face models, two blocks each where nothing else is said;
nothing is downloaded. All of the table is a slow test; the default run has a sample of those whose
sums are hardest to tell apart.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import analyzer
from analyzer.joins.rerun import Rerun

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

TWO = "a block adds attention (or another mixer) and a feed-forward network to the stream"
PARALLEL = "a block adds the sum of attention and feed-forward at once"
APART = "attention and feed-forward read one tensor, and are added one after the other"
SHARED = "two layers share their weights, and are two calls"
MIXER = "a block adds its state space layer; its scan and D · x are recurrence, no shortcut"
FOURIER = "a Fourier transform has no parameters, so only the feed-forward networks are branches"
MOBILE = "attention around a projection, two feed-forward networks, and the bottleneck as a whole"
DECODER = "an encoder block adds twice, a decoder block three times"
CONV = "one sum for each block that keeps its shape, or projects"
NONE = "plain convolutions, no shortcut"
POOLED = "two a block, and one around the network that pools"
TIMES = "attention over time, over space, and a feed-forward network in each block"
VITDET = "two a block, and one around the convolutions of the block that has them"
MOBILEVIT = "3 inverted residuals, two sums in each of 9 transformer layers, 3 concatenations"
MOBILEVIT2 = "2 inverted residuals, two sums in each of 9 transformer layers"
LEVIT = "two blocks of two sums, and one around the network after the smaller image"
SWIFT = "convolutions, inside of attention around its projection, attention, feed-forward"
POSITION = "two a block, and one around the convolution that tells positions"
CONFORMER = "a block adds two half feed-forward networks, attention and convolution"

H = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}
KV = {**H, "num_key_value_heads": 1}
D = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
G = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 64}
P = {
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "num_encoder_blocks": 2,
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
}
A = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
E = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 50,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
V = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
}
S = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 4,
}
W = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8, 8),
    "conv_stride": (4, 4),
    "conv_kernel": (8, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 32,
}
IMAGE16, IMAGE32, IMAGE64 = ({"pixel_values": (2, 3, size, size)} for size in (16, 32, 64))
WAVE = {"input_values": (2, 400)}


@dataclass(frozen=True)
class Row:
    """A model of the library, its number of joins, and why it is that.

    `shapes` and `longer` are the shapes of its inputs at two lengths; text has 6 and 10 tokens.
    """

    name: str
    num_joins: int
    reason: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    longer: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def counts(self) -> list[int]:
        """The number of joins that are found, at each length."""
        config = transformers.AutoConfig.for_model(self.name, **self.config)
        lengths = [shapes for shapes in (self.shapes, self.longer) if shapes]
        if not lengths:
            lengths = [{"input_ids": (2, length)} for length in (6, 10)]
        counts = []
        for shapes in lengths:
            torch.manual_seed(0)
            model = transformers.AutoModel.from_config(config).eval()
            inputs = {name: values(name, shape) for name, shape in shapes.items()}
            if config.is_encoder_decoder and "decoder_input_ids" not in inputs:
                inputs["decoder_input_ids"] = inputs["input_ids"][:, 1:]
            joins = analyzer.find_joins(model, **inputs)
            counts.append(len(joins))
            # What is found can be changed: in the same pass, at the same places.
            if joins and self.name != "vit_mae":  # its masks are drawn at random
                assert Rerun(model, (), inputs).joins == joins
        return counts


def values(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(3, 50, shape) if name.endswith("ids") else torch.randn(shape)


TEXT = (
    Row("gpt2", 4, TWO, G),
    Row(
        "gpt_neo",
        4,
        TWO,
        {
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "vocab_size": 50,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 64,
        },
    ),
    Row("gpt_neox", 2, PARALLEL, H),
    Row("gptj", 2, PARALLEL, {**G, "rotary_dim": 4}),
    Row("codegen", 2, PARALLEL, {**G, "n_head": 4, "rotary_dim": 4}),
    Row(
        "opt",
        4,
        TWO,
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 32,
            "vocab_size": 50,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 16,
        },
    ),
    Row("bloom", 4, TWO, {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50}),
    Row("llama", 4, TWO, KV),
    Row("mistral", 4, TWO, KV),
    Row("mixtral", 4, TWO, {**KV, "num_local_experts": 2}),
    Row("qwen2", 4, TWO, KV),
    Row("qwen3", 4, TWO, {**KV, "head_dim": 8}),
    Row(
        "qwen2_moe",
        4,
        TWO,
        {**KV, "num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 16},
    ),
    Row("gemma", 4, TWO, {**KV, "head_dim": 8}),
    Row("gemma2", 4, TWO, {**KV, "head_dim": 8}),
    Row("gemma3_text", 4, TWO, {**KV, "head_dim": 8}),
    Row("phi", 2, PARALLEL, H),
    Row("phi3", 4, TWO, {**KV, "pad_token_id": 0}),
    Row(
        "falcon",
        2,
        PARALLEL,
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50},
    ),
    Row("stablelm", 4, TWO, KV),
    Row("starcoder2", 4, TWO, KV),
    Row("olmo", 4, TWO, KV),
    Row("olmo2", 4, TWO, KV),
    Row("cohere", 4, APART, KV),
    Row("persimmon", 4, TWO, H),
    Row("granite", 4, TWO, KV),
    Row("nemotron", 4, TWO, KV),
    Row("biogpt", 4, TWO, H),
    Row(
        "xglm",
        4,
        TWO,
        {"d_model": 16, "num_layers": 2, "attention_heads": 2, "ffn_dim": 32, "vocab_size": 50},
    ),
    Row("bert", 4, TWO, H),
    Row("roberta", 4, TWO, H),
    Row("albert", 4, SHARED, {**H, "embedding_size": 8}),
    Row("electra", 4, TWO, {**H, "embedding_size": 8}),
    Row(
        "distilbert",
        4,
        TWO,
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50},
    ),
    Row("deberta", 4, TWO, {**H, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    Row("deberta-v2", 4, TWO, {**H, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    Row("mpnet", 4, TWO, H),
    Row(
        "xlnet", 4, TWO, {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32, "vocab_size": 50}
    ),
    Row(
        "rwkv",
        4,
        TWO,
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "attention_hidden_size": 16,
            "intermediate_size": 32,
            "vocab_size": 50,
            "context_length": 64,
        },
    ),
    Row(
        "mamba",
        2,
        MIXER,
        {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 50},
    ),
    Row(
        "mamba2",
        2,
        MIXER,
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "state_size": 4,
            "vocab_size": 50,
            "num_heads": 4,
            "head_dim": 8,
            "n_groups": 1,
            "chunk_size": 4,
        },
    ),
    Row(
        "falcon_mamba",
        2,
        MIXER,
        {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 50},
    ),
    Row("fnet", 2, FOURIER, H),
    Row("nystromformer", 4, TWO, {**H, "segment_means_seq_len": 2, "num_landmarks": 2}),
    Row("convbert", 4, TWO, {**H, "embedding_size": 16}),
    Row("squeezebert", 4, TWO, {**H, "embedding_size": 16}),
    Row("rembert", 4, TWO, {**H, "input_embedding_size": 16, "output_embedding_size": 16}),
    Row("roformer", 4, TWO, H),
    Row("ibert", 4, TWO, H),
    Row("longformer", 4, TWO, {**H, "attention_window": 4}),
    Row("big_bird", 4, TWO, {**H, "attention_type": "original_full"}),
    Row(
        "esm",
        4,
        TWO,
        {**H, "pad_token_id": 1, "mask_token_id": 2, "position_embedding_type": "rotary"},
    ),
    Row(
        "mobilebert",
        8,
        MOBILE,
        {
            **H,
            "embedding_size": 16,
            "intra_bottleneck_size": 8,
            "true_hidden_size": 8,
            "num_feedforward_networks": 2,
        },
    ),
    Row(
        "recurrent_gemma",
        6,
        TWO,
        {**A, "num_hidden_layers": 3, "vocab_size": 50, "lru_width": 16, "num_key_value_heads": 1},
    ),
    Row(
        "jamba",
        4,
        TWO,
        {
            **KV,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
            "use_mamba_kernels": False,
            "mamba_d_state": 4,
        },
    ),
    Row("gpt_bigcode", 4, TWO, G),
    Row(
        "xlm", 4, TWO, {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 50, "n_langs": 1}
    ),
    Row("ctrl", 4, TWO, {**G, "dff": 32}),
    Row("openai-gpt", 4, TWO, G),
    Row(
        "mpt",
        4,
        TWO,
        {"d_model": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 50, "max_seq_len": 64},
    ),
    Row("modernbert", 4, TWO, {**H, "global_attn_every_n_layers": 1, "pad_token_id": 0}),
    Row(
        "t5",
        10,
        DECODER,
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50},
    ),
    Row(
        "mt5",
        10,
        DECODER,
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50},
    ),
    Row("bart", 10, DECODER, D),
    Row("mbart", 10, DECODER, D),
    Row("pegasus", 10, DECODER, D),
    Row("marian", 10, DECODER, D),
    Row("blenderbot", 10, DECODER, D),
    Row(
        "led",
        10,
        DECODER,
        {
            **D,
            "attention_window": 4,
            "max_encoder_position_embeddings": 64,
            "max_decoder_position_embeddings": 64,
        },
    ),
    Row(
        "prophetnet",
        10,
        DECODER,
        {
            "hidden_size": 16,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 2,
            "num_decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "vocab_size": 50,
            "max_position_embeddings": 64,
        },
    ),
    Row("m2m_100", 10, DECODER, D),
    Row("plbart", 10, DECODER, D),
)
OTHERS = (
    Row("vit", 4, TWO, V, IMAGE16),
    Row("deit", 4, TWO, V, IMAGE16),
    Row("beit", 4, TWO, V, IMAGE16),
    Row("data2vec-vision", 4, TWO, V, IMAGE16),
    Row(
        "vit_mae",
        4,
        TWO,
        {
            **V,
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 32,
        },
        IMAGE16,
    ),
    Row("vit_msn", 4, TWO, V, IMAGE16),
    Row("dinov2", 4, TWO, V, IMAGE16),
    Row("dinov2_with_registers", 4, TWO, V, IMAGE16),
    Row("dinov3_vit", 4, TWO, V, IMAGE16),
    Row("yolos", 4, TWO, {**V, "image_size": [16, 16]}, IMAGE16),
    Row("ijepa", 4, TWO, V, IMAGE16),
    Row("siglip_vision_model", 5, POOLED, V, IMAGE16),
    Row("clip_vision_model", 4, TWO, V, IMAGE16),
    Row(
        "vivit",
        4,
        TWO,
        {**V, "num_frames": 4, "tubelet_size": [2, 4, 4]},
        {"pixel_values": (2, 4, 3, 16, 16)},
    ),
    Row(
        "videomae",
        4,
        TWO,
        {**V, "num_frames": 4, "tubelet_size": 2, "decoder_num_hidden_layers": 1},
        {"pixel_values": (2, 4, 3, 16, 16)},
    ),
    Row("timesformer", 6, TIMES, {**V, "num_frames": 2}, {"pixel_values": (2, 2, 3, 16, 16)}),
    Row(
        "vitdet",
        5,
        VITDET,
        {
            **V,
            "num_channels": 3,
            "pretrain_image_size": 16,
            "window_block_indices": [],
            "residual_block_indices": [1],
        },
        IMAGE16,
    ),
    Row("swin", 4, TWO, S, IMAGE32),
    Row("swinv2", 4, TWO, S, IMAGE32),
    Row("donut-swin", 4, TWO, S, IMAGE32),
    Row("maskformer-swin", 4, TWO, S, IMAGE32),
    Row("convnext", 3, CONV, {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2}, IMAGE32),
    Row(
        "convnextv2", 3, CONV, {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2}, IMAGE32
    ),
    Row(
        "dinov3_convnext", 5, CONV, {"hidden_sizes": [8, 8, 8, 16], "depths": [1, 2, 1, 1]}, IMAGE32
    ),
    Row(
        "resnet",
        4,
        CONV,
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2], "layer_type": "basic"},
        IMAGE32,
    ),
    Row(
        "regnet",
        4,
        CONV,
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2], "groups_width": 8},
        IMAGE32,
    ),
    Row(
        "bit",
        4,
        CONV,
        {"embedding_size": 8, "hidden_sizes": [32, 64], "depths": [2, 2], "num_groups": 4},
        IMAGE32,
    ),
    Row(
        "efficientnet",
        3,
        CONV,
        {"width_coefficient": 0.25, "depth_coefficient": 0.5, "image_size": 32, "hidden_dim": 320},
        IMAGE32,
    ),
    Row("mobilenet_v1", 0, NONE, {"depth_multiplier": 0.25}, IMAGE32),
    Row("mobilenet_v2", 10, CONV, {"depth_multiplier": 0.25}, IMAGE32),
    Row(
        "mobilevit",
        24,
        MOBILEVIT,
        {
            "image_size": 64,
            "hidden_sizes": [16, 16, 16],
            "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
            "num_attention_heads": 2,
            "patch_size": 2,
        },
        IMAGE64,
    ),
    Row("mobilevitv2", 20, MOBILEVIT2, {"image_size": 64, "width_multiplier": 0.25}, IMAGE64),
    Row(
        "levit",
        5,
        LEVIT,
        {
            "image_size": 64,
            "hidden_sizes": [16, 24],
            "num_attention_heads": [2, 2],
            "depths": [1, 1],
            "key_dim": [8, 8],
            "mlp_ratio": [2, 2],
            "attention_ratio": [2, 2],
            "down_ops": [["Subsample", 8, 2, 4, 2, 2]],
        },
        IMAGE64,
    ),
    Row(
        "poolformer",
        4,
        TWO,
        {
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "num_encoder_blocks": 2,
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "padding": [2, 1],
        },
        IMAGE32,
    ),
    Row(
        "pvt",
        4,
        TWO,
        {**P, "image_size": 32, "sequence_reduction_ratios": [2, 1], "patch_sizes": [4, 2]},
        IMAGE32,
    ),
    Row("pvt_v2", 4, TWO, {**P, "image_size": 32, "sr_ratios": [2, 1]}, IMAGE32),
    Row("segformer", 4, TWO, {**P, "sr_ratios": [2, 1], "decoder_hidden_size": 8}, IMAGE32),
    Row("glpn", 4, TWO, {**P, "sr_ratios": [2, 1], "decoder_hidden_size": 8}, IMAGE32),
    Row(
        "focalnet",
        4,
        TWO,
        {
            "image_size": 32,
            "embed_dim": 8,
            "depths": [1, 1],
            "hidden_sizes": [8, 16],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
        IMAGE32,
    ),
    Row(
        "swiftformer",
        8,
        SWIFT,
        {
            "image_size": 32,
            "depths": [1, 1],
            "embed_dims": [8, 16],
            "num_channels": 3,
            "mlp_ratio": 2,
        },
        IMAGE32,
    ),
    Row(
        "hiera",
        4,
        TWO,
        {
            "image_size": [32, 32],
            "patch_size": [7, 7],
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "query_stride": [2, 2],
            "num_query_pool": 1,
            "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, False],
        },
        IMAGE32,
    ),
    Row("imagegpt", 4, TWO, G, {"input_ids": (2, 16)}),
    Row(
        "dpt",
        4,
        TWO,
        {
            **V,
            "neck_hidden_sizes": [8, 8, 8, 8],
            "backbone_out_indices": [0, 1, 1, 1],
            "is_hybrid": False,
        },
        IMAGE16,
    ),
    Row("wav2vec2", 5, POSITION, W, WAVE),
    Row("hubert", 5, POSITION, W, WAVE),
    Row("wavlm", 5, POSITION, W, WAVE),
    Row("unispeech", 5, POSITION, W, WAVE),
    Row("unispeech-sat", 5, POSITION, W, WAVE),
    Row("sew", 5, POSITION, {**W, "squeeze_factor": 2}, {"input_values": (2, 800)}),
    Row("data2vec-audio", 5, POSITION, W, WAVE),
    Row(
        "wav2vec2-conformer",
        8,
        CONFORMER,
        {**W, "position_embeddings_type": "relative"},
        WAVE,
        {"input_values": (2, 900)},
    ),
    Row(
        "wav2vec2-bert",
        8,
        CONFORMER,
        {**A, "feature_projection_input_dim": 16},
        {"input_features": (2, 12, 16)},
        {"input_features": (2, 20, 16)},
    ),
    Row(
        "whisper",
        10,
        DECODER,
        {**E, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20},
        {"input_features": (2, 8, 40), "decoder_input_ids": (2, 5)},
    ),
    Row(
        "speech_to_text",
        10,
        DECODER,
        {
            **E,
            "input_feat_per_channel": 8,
            "conv_channels": 16,
            "num_conv_layers": 1,
            "conv_kernel_sizes": [5],
        },
        {"input_features": (2, 20, 8), "decoder_input_ids": (2, 5)},
    ),
    Row(
        "audio-spectrogram-transformer",
        4,
        TWO,
        {
            **A,
            "max_length": 32,
            "num_mel_bins": 16,
            "patch_size": 4,
            "frequency_stride": 4,
            "time_stride": 4,
        },
        {"input_values": (2, 32, 16)},
    ),
    Row(
        "parakeet_encoder",
        8,
        CONFORMER,
        {**A, "num_mel_bins": 16, "subsampling_conv_channels": 8},
        {"input_features": (2, 64, 16)},
        {"input_features": (2, 96, 16)},
    ),
)
TABLE = {row.name: row for row in (*TEXT, *OTHERS)}
SAMPLE = ("rwkv", "mamba", "xlnet", "gpt_neox", "wav2vec2-conformer", "swin", "convnextv2")


def check(row: Row) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counts = row.counts()
    assert set(counts) == {row.num_joins}, row.reason


def test_the_table_has_forty_transformers_and_forty_image_models() -> None:
    images = [row for row in OTHERS if "pixel_values" in row.shapes or row.name == "imagegpt"]
    assert len(TEXT) >= 40
    assert len(images) >= 40
    assert len(TABLE) == len(TEXT) + len(OTHERS)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_known_networks_has_the_joins_of_its_architecture(name: str) -> None:
    check(TABLE[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_known_networks_have_the_joins_of_their_architecture(name: str) -> None:
    check(TABLE[name])
