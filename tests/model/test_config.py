"""Configurations: published checkpoints, derived numbers, and every refusal by name."""

import json

import pytest
from fakes_model import TINY_CONFIG

from model.config import Dtype, EngineConfig, LayerKind, ModelConfig, ReadingUnit
from model.errors import CheckpointNotFound, ConfigInvalid
from model.hybrid import HybridLM
from model.kernels import REFERENCE
from model.policy import AttentionPolicy, PolicyName

COMMON = {
    "model_type": "jamba",
    "hidden_act": "silu",
    "vocab_size": 65536,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 262144,
}
JAMBA_V01 = COMMON | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "mamba_dt_rank": 256,
    "tie_word_embeddings": False,
}
JAMBA_REASONING_3B = COMMON | {
    "hidden_size": 2560,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 1,
    "attn_layer_period": 14,
    "attn_layer_offset": 7,
    "num_experts": 1,
    "mamba_dt_rank": 160,
    "tie_word_embeddings": True,
}
MIB = 2**20


@pytest.mark.parametrize(
    ("values", "num_parameters", "billions", "kv_bytes", "state_mib"),
    [(JAMBA_V01, 51_570_323_328, 51.6, 16_384, 14.0), (JAMBA_REASONING_3B, 3_029_337_472, 3.03, 1_024, 8.125)],
)
def test_published_checkpoints(
    values: dict, num_parameters: int, billions: float, kv_bytes: int, state_mib: float
) -> None:
    config = ModelConfig.from_dict(values)
    assert config.num_parameters() == num_parameters
    assert round(num_parameters / 1e9, 1 if billions > 10 else 2) == billions
    assert config.kv_bytes_per_token(Dtype.BFLOAT16) == config.kv_bytes_per_token(Dtype.INT8) == kv_bytes
    assert config.ssm_state_bytes == state_mib * MIB
    # Three of the four inputs of the convolution are kept, in float32.
    assert config.conv_state_bytes == config.num_mamba_layers * 3 * config.inner_size * 4


@pytest.mark.parametrize("values", [JAMBA_V01, JAMBA_REASONING_3B])
def test_published_checkpoints_build_on_the_meta_device(values: dict) -> None:
    config = ModelConfig.from_dict(values)
    model = HybridLM(config, REFERENCE, Dtype.BFLOAT16, device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) == config.num_parameters()
    assert model.nbytes == config.weight_bytes(Dtype.BFLOAT16)


def test_layers_of_the_published_checkpoints() -> None:
    config = ModelConfig.from_dict(JAMBA_V01)
    assert [i for i, kind in enumerate(config.layer_kinds) if kind is LayerKind.ATTENTION] == [4, 12, 20, 28]
    assert [i for i in range(32) if config.has_experts(i)] == list(range(1, 32, 2))
    assert (config.num_attention_layers, config.num_mamba_layers, config.num_expert_layers) == (4, 28, 16)
    config = ModelConfig.from_dict(JAMBA_REASONING_3B)
    assert [i for i, kind in enumerate(config.layer_kinds) if kind is LayerKind.ATTENTION] == [7, 21]
    assert (config.num_expert_layers, config.head_width, config.inner_size) == (0, 128, 5120)


def test_defaults_of_the_layout() -> None:
    config = ModelConfig.from_dict(
        TINY_CONFIG | {"hidden_size": 50, "mamba_dt_rank": "auto", "num_key_value_heads": None}
    )
    assert config.dt_rank == 4
    assert config.num_kv_heads == config.num_heads == 2
    assert (config.tie_word_embeddings, config.conv_bias, config.proj_bias) == (False, True, False)
    assert config.policy == AttentionPolicy(PolicyName.FULL)
    assert config.max_position_embeddings is None


def test_the_checkpoint_names_its_policy() -> None:
    values = TINY_CONFIG | {"fano": {"policy": "window", "sinks": 128, "window": 512}}
    assert ModelConfig.from_dict(values).policy == AttentionPolicy(PolicyName.WINDOW, 128, 512)
    values = TINY_CONFIG | {"fano": {"policy": "window"}}
    assert ModelConfig.from_dict(values).policy == AttentionPolicy(PolicyName.WINDOW, 64, 2048)


def test_the_checkpoint_may_say_what_its_state_recalled() -> None:
    values = TINY_CONFIG | {"fano": {"policy": "window", "recall_bits": 12}}
    assert ModelConfig.from_dict(values).state_recall_bits == 12.0
    assert ModelConfig.from_dict(TINY_CONFIG).state_recall_bits is None


def test_the_checkpoint_names_the_evidence_it_reads_best() -> None:
    values = TINY_CONFIG | {"fano": {"policy": "window", "reads": "sentence"}}
    assert ModelConfig.from_dict(values).reads is ReadingUnit.SENTENCE
    assert ModelConfig.from_dict(TINY_CONFIG).reads is ReadingUnit.PASSAGES


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mamba_inner_layernorms": False}, "mamba_inner_layernorms"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"vocab_size": 32.0}, "vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"attn_layer_offset": 2}, "attn_layer_offset"),
        ({"mamba_d_conv": 1}, "mamba_d_conv"),
        ({"mamba_dt_rank": "large"}, "mamba_dt_rank"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"num_experts": 4}, "num_experts_per_tok"),
        (
            {"num_experts": 4, "num_experts_per_tok": 5, "expert_layer_period": 2, "expert_layer_offset": 1},
            "num_experts_per_tok",
        ),
        (
            {"num_experts": 4, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 2},
            "expert_layer_offset",
        ),
        ({"fano": "window"}, "fano"),
        ({"fano": {"policy": "sliding"}}, "fano.policy"),
        ({"fano": {"policy": "window", "reads": "books"}}, "fano.reads"),
        ({"fano": {"policy": "window", "windows": 64}}, "fano.windows"),
        ({"fano": {"policy": "window", "recall_bits": -1}}, "fano.recall_bits"),
        ({"fano": {"policy": "window", "window": 100}}, "fano"),
        ({"fano": {"policy": "window", "window": 0}}, "window"),
    ],
)
def test_an_unusable_value_is_refused_by_its_key(change: dict, key: str) -> None:
    with pytest.raises(ConfigInvalid) as refusal:
        ModelConfig.from_dict(TINY_CONFIG | change)
    assert refusal.value.key == key
    assert key in str(refusal.value)
    assert "expected" in str(refusal.value)


@pytest.mark.parametrize("key", [key for key in TINY_CONFIG if key not in ("num_key_value_heads", "model_type")])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ConfigInvalid) as refusal:
        ModelConfig.from_dict({name: value for name, value in TINY_CONFIG.items() if name != key})
    assert refusal.value.key == key


def test_from_pretrained_reads_the_file_and_names_what_is_wrong_with_it(tmp_path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY_CONFIG))
    assert ModelConfig.from_pretrained(tmp_path) == ModelConfig.from_dict(TINY_CONFIG)
    for text in ("{", "[]", '"jamba"'):
        path.write_text(text)
        with pytest.raises(ConfigInvalid, match=r"config\.json"):
            ModelConfig.from_pretrained(tmp_path)
    with pytest.raises(CheckpointNotFound, match=r"nowhere.config\.json does not exist"):
        ModelConfig.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change",
    [
        {"num_slots": 0},
        {"max_context_tokens": 0},
        {"prefill_chunk_tokens": 100},
        {"num_threads": 0},
        {"max_waiting": -1},
        {"num_blocks": 0},
    ],
)
def test_an_unusable_engine_config_is_refused_by_its_key(change: dict[str, int]) -> None:
    with pytest.raises(ConfigInvalid) as refusal:
        EngineConfig(**change)
    assert {refusal.value.key: refusal.value.value} == change


def test_the_engine_takes_the_checkpoints_policy_unless_told_otherwise() -> None:
    window = AttentionPolicy(PolicyName.WINDOW, 0, 64)
    config = ModelConfig.from_dict(TINY_CONFIG)
    assert EngineConfig().policy_for(config) == AttentionPolicy()
    assert EngineConfig(policy=window).policy_for(config) == window
