"""Needles in prose that all lie before the window: lone ones, one fact, one fact of many, sentences in other words."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.recall.cases import Case, Corpus
from bench.recall.haystack import Haystack, plant
from bench.recall.needles import TEMPLATES
from bench.recall.prose import filled_templates
from model.tokenizer import Tokenizer

# Tokens that a text has behind its last needle, beyond the window.
MARGIN_TOKENS = 256
# Sentences in other words, in one text.
NUM_NAMED = 8
FACT = "The code word of {key} is {value}."
ASK = "What is the code word of {key}?"


@dataclass(frozen=True)
class Needle:
    """A sentence with its value, and a question about it."""

    sentence: str
    question: str
    value: str


class Needles:
    """Texts of ``num_tokens``, with needles evenly from the first to the last sentence that no window reaches."""

    def __init__(self, haystack: Haystack, tokenizer: Tokenizer, window: int, seed: int) -> None:
        self._haystack = haystack
        self._window = window
        self._seed = seed
        self._words = common_words(tokenizer)

    def corpora(self, task: str, num_tokens: int, num_texts: int) -> Iterator[Corpus]:
        """The same texts whenever they are asked for. Tasks: ``lone``, ``one``, ``many N``, ``named``."""
        dice = random.Random(f"{self._seed}/{task}/{num_tokens}")
        for number in range(num_texts):
            yield self._corpus(task, num_tokens, (number + 0.5) / num_texts, dice)

    def _corpus(self, task: str, num_tokens: int, turn: float, dice: random.Random) -> Corpus:
        needles = self._needles(task, dice)
        reach = 1 - (self._window + MARGIN_TOKENS) / num_tokens
        assert reach > 0, f"a text of {num_tokens} tokens lies in the window of {self._window}"
        # Few needles stand at another depth in each text, many evenly in all.
        depths = [reach * ((number + turn) / len(needles)) for number in range(len(needles))]
        dice.shuffle(needles)
        text, starts = plant(self._haystack.stretch(num_tokens, dice), [each.sentence for each in needles], depths)
        cases = [
            Case.of(text, each.question, [(start, each.sentence, each.value)], task)
            for start, each in zip(starts, needles, strict=True)
        ]
        return Corpus(text, tuple(cases))

    def _needles(self, task: str, dice: random.Random) -> list[Needle]:
        if task == "lone":
            key, number = str(dice.randrange(10_000, 100_000)), str(dice.randrange(10**9, 10**10))
            return [
                Needle(f"The pass key is {key}. Remember it.", "What is the pass key?", key),
                Needle(f"The sequence of digits is {number}. Remember it.", "What is the sequence of digits?", number),
            ]
        if task == "named":
            chosen = dice.sample(TEMPLATES, NUM_NAMED)
            return [Needle(sentence, named, value) for sentence, value, named, _ in filled_templates(chosen, dice)]
        count = 1 if task == "one" else int(task.removeprefix("many "))
        keys, values = (dice.sample(self._words, count) for _ in range(2))
        return [
            Needle(FACT.format(key=key, value=value), ASK.format(key=key), value)
            for key, value in zip(keys, values, strict=True)
        ]


def common_words(tokenizer: Tokenizer) -> Sequence[str]:
    """Words of one token after a space."""
    shown = {tokenizer.token_bytes(token_id).decode("utf-8", "replace") for token_id in range(tokenizer.vocab_size)}
    return sorted(word[1:] for word in shown if re.fullmatch(" [a-z]{4,}", word))
