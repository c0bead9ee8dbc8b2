"""What the state alone recalls, in bits: facts are read, leave every window, and are asked for.

K facts give each of K different keys one of V words, drawn at random. They are read, then filler until no attention
layer can reach them, not even over the layers below it; then each key is asked for, and the most probable of the V
words is the answer. By Fano's inequality whoever answers with error rate e was told by what it remembers at least

    K * (log2 V - h(e) - e * log2(V - 1))    bits

and e is the upper end of its 95 % interval, so that luck counts for nothing. Beside it facts within the window:

    python -m bench.recall_capacity --model weights/fano-reader

The figure "beyond the window" at its best K is what `fano.recall_bits` in the checkpoint's config.json is to say.
"""

import argparse
import json
import math
import platform
import random
import re
import sys
from array import array
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.checkpoints import random_text
from model.config import EngineConfig, ModelConfig
from model.engine.engine import Engine
from model.engine.loader import choose_dtype, load_engine
from model.engine.request import GenerationRequest, SamplingParams
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from server.services import embedded_checkpoint

FACT = "The code word of {key} is {value}."
QUESTION = "What is the code word of {key}?"
# Of a normal distribution 95 % lie within so many standard deviations.
Z95 = 1.96
BIAS = 100.0


@dataclass(frozen=True)
class Recall:
    """Of ``num_asked`` questions about K facts ``num_right`` were answered right; a guess is right once in V."""

    num_facts: int
    num_words: int
    num_asked: int
    num_right: int

    @property
    def bits(self) -> float:
        """What was recalled at least, from the lower end of the interval of the rate of right answers."""
        low = wilson_low(self.num_right, self.num_asked)
        return self.num_facts * fano_bits(1 - low, self.num_words) if low > 1 / self.num_words else 0.0

    def as_json(self) -> dict[str, Any]:
        """For the last line."""
        return {"facts": self.num_facts, "asked": self.num_asked, "right": self.num_right, "bits": round(self.bits, 2)}


def fano_bits(error: float, num_words: int) -> float:
    """Bits about one of ``num_words`` that an answer with this error rate cannot do without."""
    entropy = -sum(p * math.log2(p) for p in (error, 1 - error) if p > 0)
    return math.log2(num_words) - entropy - error * math.log2(num_words - 1)


def wilson_low(num_right: int, num_asked: int) -> float:
    """The lower end of Wilson's 95 % interval of a rate."""
    rate, spread = num_right / num_asked, Z95**2 / num_asked
    middle = rate + spread / 2
    return max(0.0, (middle - Z95 * math.sqrt(rate * (1 - rate) / num_asked + spread / (4 * num_asked))) / (1 + spread))


class Examiner:
    """Asks one engine for facts at a distance of ``num_filler`` tokens."""

    def __init__(self, engine: Engine, words: list[str], num_words: int, policy: AttentionPolicy, seed: int) -> None:
        self._engine = engine
        self._dice = random.Random(seed)
        self._policy = policy
        shuffled = self._dice.sample(words, len(words))
        self._values, self._keys = shuffled[:num_words], shuffled[num_words:]
        self._value_ids = {self._answer_id(value): value for value in self._values}
        assert len(self._value_ids) == num_words, "two words begin with the same token"
        self._num_requests = 0

    def examine(self, num_facts: int, num_asked: int, num_filler: int) -> Recall:
        """Texts with ``num_facts`` facts each, until ``num_asked`` questions were asked."""
        right = asked = 0
        while asked < num_asked:
            keys = self._dice.sample(self._keys, num_facts)
            facts = {key: self._dice.choice(self._values) for key in keys}
            filler = [random_text(self._keys, num, self._dice) for num in (BLOCK_TOKENS, num_filler)]
            told = " ".join(FACT.format(key=key, value=value) for key, value in facts.items())
            text = f"[1] {filler[0]}. {told} {filler[1]}." if num_filler else f"[1] {told}"
            for key in self._dice.sample(keys, min(num_facts, num_asked - asked)):
                right += self._ask(text, key) == facts[key]
                asked += 1
        return Recall(num_facts, len(self._values), asked, right)

    def _ask(self, text: str, key: str) -> str:
        content = f"{text}\n\nQuestion: {QUESTION.format(key=key)}"
        ids = array("i", self._engine.tokenizer.encode_chat([{"role": "user", "content": content}]))
        bias = tuple((token_id, BIAS) for token_id in self._value_ids)
        sampling = SamplingParams(max_tokens=1, temperature=0.0, logit_bias=bias)
        self._num_requests += 1
        self._engine.submit(GenerationRequest(str(self._num_requests), ids, sampling, policy=self._policy))
        drawn: list[int] = []
        while self._engine.has_work():
            for event in self._engine.step():
                drawn += event.token_ids
        return self._value_ids.get(drawn[0], "")

    def _answer_id(self, word: str) -> int:
        """The first token of an answer that is the word."""
        tokenizer = self._engine.tokenizer
        turns = [{"role": "user", "content": "?"}]
        opening = tokenizer.encode_chat(turns)
        answered = tokenizer.encode_chat([*turns, {"role": "assistant", "content": word}], add_generation_prompt=False)
        return answered[len(opening)]


def common_words(engine: Engine) -> list[str]:
    """Words of one token each after a space, and all their first tokens different."""
    tokenizer = engine.tokenizer
    shown = {tokenizer.token_bytes(token_id).decode("utf-8", "replace") for token_id in range(tokenizer.vocab_size)}
    return sorted(word[1:] for word in shown if re.fullmatch(" [a-z]{4,}", word))


def far_away(model: ModelConfig, policy: AttentionPolicy) -> int:
    """Tokens after which nothing of what stood before can be seen, over all attention layers one after the other."""
    return model.num_attention_layers * (policy.window + BLOCK_TOKENS) + BLOCK_TOKENS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=embedded_checkpoint())
    parser.add_argument("--facts", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--questions", type=int, default=96)
    parser.add_argument("--words", type=int, default=64, help="V: from so many the values are drawn.")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()

    model = ModelConfig.from_pretrained(arguments.model)
    near = model.policy if model.policy.name is PolicyName.WINDOW else AttentionPolicy(PolicyName.WINDOW)
    far = replace(near, sinks=BLOCK_TOKENS, window=arguments.window)
    config = EngineConfig(num_slots=2, max_context_tokens=65_536, dtype=choose_dtype("cpu")[0], policy=near,
                          num_threads=arguments.threads)  # fmt: skip
    engine, _ = load_engine(arguments.model, config)
    words, rows = common_words(engine), []
    distance = far_away(model, far)
    print(f"{arguments.model.name}: one of {arguments.words} words for each key")
    print(f"beyond: {distance} tokens later, under a window of {far.window}")
    print(f"within: at once, under a window of {near.window}\n")
    print("| facts | within: right | bits | beyond: right | bits |\n|---|---|---|---|---|")
    for num_facts in arguments.facts:
        within = Examiner(engine, words, arguments.words, near, arguments.seed).examine(
            num_facts, arguments.questions, 0
        )
        beyond = Examiner(engine, words, arguments.words, far, arguments.seed).examine(
            num_facts, arguments.questions, distance
        )
        rows.append({"within": within.as_json(), "beyond": beyond.as_json()})
        cells = [f"{each.num_right} of {each.num_asked} | {each.bits:.1f}" for each in (within, beyond)]
        print(f"| {num_facts} | {' | '.join(cells)} |")
        sys.stdout.flush()
    best = max(rows, key=lambda row: row["beyond"]["bits"])["beyond"]
    state_bits = 8 * model.state_bytes
    print(f"\nthe state alone recalled {best['bits']} bits at K = {best['facts']}, of {state_bits:,} that it is large: "
          f"{best['bits'] / state_bits:.1e} of them")  # fmt: skip
    print(json.dumps({
        "model": arguments.model.name, "words": arguments.words, "window": far.window, "distance": distance,
        "seed": arguments.seed, "machine": platform.machine(), "torch": version("torch"), "state_bits": state_bits,
        "recall_bits": best["bits"], "facts_at_best": best["facts"], "rows": rows,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
