"""Recalled bits: what an error rate proves, and that facts at hand are found."""

import pytest

from bench.recall_capacity import Examiner, Recall, common_words, fano_bits, far_away, wilson_low
from model.config import EngineConfig, ModelConfig
from model.engine.loader import load_engine
from model.policy import AttentionPolicy, PolicyName
from server.services import embedded_checkpoint


def test_an_error_rate_proves_bits() -> None:
    assert fano_bits(0.0, 64) == 6.0
    assert fano_bits(1 - 1 / 64, 64) == pytest.approx(0.0, abs=1e-9)
    # notes on the bound: of 8192 words 11.23 bits are left at 10 % of errors
    assert fano_bits(0.1, 8192) == pytest.approx(11.23, abs=0.01)


def test_luck_proves_nothing() -> None:
    assert wilson_low(0, 10) == 0.0 and wilson_low(10, 10) == pytest.approx(0.7225, abs=1e-4)
    assert Recall(4, 64, 100, 2).bits == 0.0
    assert 0 < Recall(4, 64, 100, 50).bits < 4 * fano_bits(0.5, 64)
    assert Recall(4, 64, 100, 100).bits < 4 * 6.0


def test_facts_at_hand_are_found() -> None:
    engine, _ = load_engine(embedded_checkpoint(), EngineConfig(num_slots=1, max_context_tokens=4096))
    policy = AttentionPolicy(PolicyName.WINDOW, 64, 512)
    found = Examiner(engine, common_words(engine), 16, policy, seed=1).examine(num_facts=2, num_asked=8, num_filler=0)
    assert found.num_right >= 6 and found.bits > 0


def test_far_away_is_beyond_every_layer() -> None:
    model = ModelConfig.from_pretrained(embedded_checkpoint())
    policy = AttentionPolicy(PolicyName.WINDOW, 64, 256)
    assert far_away(model, policy) > model.num_attention_layers * 256
