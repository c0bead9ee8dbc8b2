"""Tasks whose needles lie in real prose: single ones in other words, RULER's, InfiniteBench's."""

import random
import string
from collections.abc import Iterator, Sequence

from bench.recall.cases import Case, Corpus
from bench.recall.haystack import Haystack, plant
from bench.recall.needles import ADJECTIVES, FIRST_NAMES, NOUNS, PLACES, SURNAMES, TEMPLATES, Template


def most(num_tokens: int, small: int, medium: int, large: int) -> int:
    """How many needles of a task a text of this length gets: the more there are, the fewer texts must be indexed."""
    return small if num_tokens < 16_384 else medium if num_tokens < 65_536 else large


def single(haystack: Haystack, num_tokens: int, num_cases: int, rng: random.Random) -> Iterator[Corpus]:
    """Sentences in a book, each asked twice: group ``named`` with its name, group ``described`` without.

    Several are planted in one text, each of a template of its own, evenly from its first to its last sentence: one text
    for each would be another index for each. The others can only distract, so that the rate found is a lower bound of
    that of needles that lie alone.
    """
    share = most(num_tokens, 10, 20, 60)
    queue: list[Template] = []
    for done in range(0, num_cases, share):
        count = min(share, num_cases - done)
        while len(queue) < count:
            queue += [template for template in rng.sample(TEMPLATES, len(TEMPLATES)) if template not in queue]
        chosen, queue = queue[:count], queue[count:]
        rng.shuffle(chosen)
        filled = filled_templates(chosen, rng)
        text, starts = plant(haystack.stretch(num_tokens, rng), [one[0] for one in filled], _even(count))
        cases = []
        for start, (sentence, value, named, described) in zip(starts, filled, strict=True):
            cases += [
                Case.of(text, named, [(start, sentence, value)], "named"),
                Case.of(text, described, [(start, sentence, value)], "described"),
            ]
        yield Corpus(text, tuple(cases))


def filled_templates(templates: Sequence[Template], rng: random.Random) -> list[tuple[str, str, str, str]]:
    """Sentence, value, and the named and the described question of each; no two share a name."""
    names = {
        "N": rng.sample(SURNAMES, len(SURNAMES)),
        "F": rng.sample(FIRST_NAMES, len(FIRST_NAMES)),
        "P": rng.sample(PLACES, len(PLACES)),
    }
    return [_filled(template, names, rng) for template in templates]


def _filled(template: Template, names: dict[str, list[str]], rng: random.Random) -> tuple[str, str, str, str]:
    value = rng.choice(template.values.split("|"))
    told = [template.sentence, template.named, template.described]
    for slot, pool in names.items():
        if slot in _slots(template.sentence):
            name = pool.pop()
            told = [_put(text, slot, name) for text in told]
    return _put(told[0], "V", value), value, told[1], told[2]


def _slots(sentence: str) -> set[str]:
    return {word for word in "".join(c if c.isalnum() else " " for c in sentence).split() if word in "NFPV"}


def _put(text: str, slot: str, name: str) -> str:
    parts = []
    for place, sign in enumerate(text):
        before, after = text[place - 1 : place], text[place + 1 : place + 2]
        parts.append(name if sign == slot and not before.isalnum() and not after.isalnum() else sign)
    return "".join(parts)


def keyed(haystack: Haystack, num_tokens: int, num_cases: int, rng: random.Random) -> Iterator[Corpus]:
    """RULER's multi-value (group ``values``: four numbers under one key, all of them) and multi-query (``queries``: one
    number under each of four keys), scattered in prose among others of their kind."""
    share = most(num_tokens, 5, 20, 60)
    for done in range(0, num_cases, share):
        count = min(share, num_cases - done)
        pairs = [f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in NOUNS]
        keys = rng.sample(pairs, 5 * count)
        owners = [*(key for key in keys[:count] for _ in range(4)), *keys[count:]]
        rng.shuffle(owners)
        numbers = [str(rng.randrange(10**6, 10**7)) for _ in owners]
        lines = [f"One of the special magic numbers for {key} is: {n}." for key, n in zip(owners, numbers, strict=True)]
        text, starts = plant(haystack.stretch(num_tokens, rng), lines, _even(len(lines)))
        stands: dict[str, list[tuple[int, str, str]]] = {}
        for key, start, line, number in zip(owners, starts, lines, numbers, strict=True):
            stands.setdefault(key, []).append((start, line, number))
        ask = "What are all the special magic numbers for {} mentioned in the provided text?"
        cases = [Case.of(text, ask.format(key), stands[key], "values") for key in keys[:count]]
        for first in range(count, 5 * count, 4):
            four = keys[first : first + 4]
            wanted = [triple for key in four for triple in stands[key]]
            cases.append(Case.of(text, ask.format(f"{', '.join(four[:3])}, and {four[3]}"), wanted, "queries"))
        yield Corpus(text, tuple(cases))


def chains(haystack: Haystack, num_tokens: int, num_cases: int, rng: random.Random) -> Iterator[Corpus]:
    """RULER's variable tracking: a number is handed on over two or four hops (groups ``2 hops``, ``4 hops``)."""
    share = most(num_tokens, 5, 20, 60)
    for done in range(0, num_cases, share):
        count = min(share, num_cases - done)
        lengths = [3] * count + [5] * count
        names: set[str] = set()
        while len(names) < sum(lengths):
            names.add("".join(rng.choices(string.ascii_uppercase, k=5)))
        free = sorted(names)
        rng.shuffle(free)
        values = rng.sample(range(10_000, 100_000), len(lengths))
        # A line of a chain comes after the one it refers to, whatever stands between them.
        turns = [chain for chain, length in enumerate(lengths) for _ in range(length)]
        rng.shuffle(turns)
        told: list[list[str]] = [[] for _ in lengths]
        lines: list[str] = []
        for chain in turns:
            name = free.pop()
            lines.append(f"VAR {name} = {f'VAR {told[chain][-1]}' if told[chain] else values[chain]}.")
            told[chain].append(name)
        text, starts = plant(haystack.stretch(num_tokens, rng), lines, _even(len(lines)))
        stands: list[list[tuple[int, str, str]]] = [[] for _ in lengths]
        for chain, start, line in zip(turns, starts, lines, strict=True):
            stands[chain].append((start, line, told[chain][len(stands[chain])]))
        ask = "Find all variables that are assigned the value {} in the text above."
        cases = [
            Case.of(text, ask.format(values[chain]), stands[chain], f"{lengths[chain] - 1} hops")
            for chain in range(len(lengths))
        ]
        yield Corpus(text, tuple(cases))


def lone(haystack: Haystack, num_tokens: int, num_cases: int, rng: random.Random) -> Iterator[Corpus]:
    """InfiniteBench's passkey and number: one of each in a text, for a second one would make the question ambiguous."""
    for number in range(num_cases):
        key, digits = str(rng.randrange(10_000, 100_000)), str(rng.randrange(10)) * 7 + str(rng.randrange(100, 1000))
        lines = [f"The pass key is {key}. Remember it.", f"The sequence of digits is {digits}. Remember it."]
        at = number / max(num_cases - 1, 1)
        told = [(at, lines[0], key, "What is the pass key?", "passkey")]
        told.append((1.0 - at, lines[1], digits, "What is the sequence of digits?", "number"))
        told.sort()
        text, starts = plant(haystack.stretch(num_tokens, rng), [one[1] for one in told], [one[0] for one in told])
        cases = [
            Case.of(text, question, [(start, line.removesuffix(" Remember it."), answer)], group)
            for start, (_, line, answer, question, group) in zip(starts, told, strict=True)
        ]
        yield Corpus(text, tuple(cases))


def _even(count: int) -> list[float]:
    return [number / max(count - 1, 1) for number in range(count)]
