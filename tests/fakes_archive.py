"""An engine whose archive has room for a few blocks, and what tests of the archive share."""

import random
from array import array

from fakes_model import TINY_CONFIG
from fakes_runner import build, finish, request

from model.cache.block_pool import BlockPool
from model.cache.kv_archive import KvArchive
from model.cache.state_pool import StatePool
from model.config import Dtype, ModelConfig
from model.engine.engine import Engine
from model.engine.request import TokenEvent
from model.engine.runner import ModelRunner
from model.engine.token_trie import TokenTrie
from model.hybrid import HybridLM
from model.policy import AttentionPolicy, PolicyName
from model.tokenizer import Tokenizer

CONFIG = ModelConfig.from_dict(TINY_CONFIG)
BLOCK, SUMMARY = CONFIG.archive_bytes_per_block(Dtype.FLOAT32)
POLICY = AttentionPolicy(PolicyName.ARCHIVE, sinks=64, window=64, select=2)


class Bench:
    """An engine with an archive of so many blocks."""

    def __init__(
        self, model: HybridLM, tokenizer: Tokenizer, num_blocks: int, pool_blocks: int = 60, num_spare_slots: int = 6
    ) -> None:
        each = sum(model.config.archive_bytes_per_block(Dtype.FLOAT32))
        self.archive = KvArchive(model.config, Dtype.FLOAT32, num_blocks * each)
        states = StatePool(model.config, 3 + num_spare_slots)
        blocks = BlockPool(model.config, pool_blocks, Dtype.FLOAT32, archive=self.archive)
        self.runner = ModelRunner(model, states, blocks, num_slots=3, checkpoint_bytes=1 << 24, chunk_tokens=64)
        vocabulary = TokenTrie(tokenizer.token_bytes, tokenizer.vocab_size, tokenizer.eos_ids)
        capacity = self.runner.capacity(1 << 30)
        self.engine: Engine = build(
            self.runner, capacity, tokenizer, vocabulary, POLICY, max_context=9000, archive=(num_blocks, each)
        )
        self.dice = random.Random(3)

    def text(self, length: int) -> "array[int]":
        """Any tokens."""
        return array("i", [self.dice.randrange(3, 30) for _ in range(length)])

    def ask(self, name: str, prompt: "array[int]", max_tokens: int = 2, **fields: object) -> TokenEvent:
        """The last event of a request that runs to its end alone."""
        self.engine.submit(request(name, prompt, max_tokens=max_tokens, **fields))
        events = finish(self.engine)
        self.engine.check()
        return events[-1]
