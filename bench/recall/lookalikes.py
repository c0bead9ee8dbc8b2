"""Tasks whose needles look alike: UUIDs by the thousand, key-value pairs, ten thousand records in a million tokens."""

import json
import lzma
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.recall.cases import Case, Corpus
from bench.recall.haystack import CountTokens, Haystack, plant

# Other writings of an identifier: case, no separators, blanks for them, other separators, braces.
UUID_WRITINGS: tuple[Callable[[str], str], ...] = (
    str.upper,
    lambda key: key.replace("-", ""),
    lambda key: key.replace("-", " "),
    lambda key: "{" + key.upper() + "}",
    lambda key: key.replace("-", "").upper(),
)
CODE_WRITINGS: tuple[Callable[[str], str], ...] = (
    str.lower,
    lambda key: key.replace("-", ""),
    lambda key: key.replace("-", " "),
    lambda key: key.replace("-", "/"),
    lambda key: key.replace("-", "\u2011").lower(),
)


def uuids(count_tokens: CountTokens, num_tokens: int, num_cases: int, rng: random.Random) -> Iterator[Corpus]:
    """RULER's niah_multikey_3: every sentence of the text is a needle, keys and values are UUIDs.

    Asked by the key as it stands (group ``as written``) and in other writings (``reformatted``).
    """

    def line(key: str, value: str) -> str:
        return f"One of the special magic uuids for {key} is: {value}."

    num_left = num_cases
    while num_left > 0:
        pairs = [(_uuid(rng), _uuid(rng)) for _ in range(num_tokens // 40)]
        count = _as_many(pairs, line, count_tokens, num_tokens)
        text, starts, lines = _joined(pairs[:count], line, "\n")
        cases: list[Case] = []
        for place, number in enumerate(sorted(rng.sample(range(count), min(count, num_left)))):
            key, value = pairs[number]
            wanted = [(starts[number], lines[number], value)]
            ask = "What is the special magic uuid for {} mentioned in the provided text?"
            cases.append(Case.of(text, ask.format(key), wanted, "as written"))
            cases.append(Case.of(text, ask.format(UUID_WRITINGS[place % 5](key)), wanted, "reformatted"))
        num_left -= len(cases) // 2
        yield Corpus(text, tuple(cases))


def pairs_of(path: Path) -> list[tuple[str, str]]:
    """The pairs of lost-in-the-middle's key-value sets (arXiv 2307.03172), all of them, in their order."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [(key, value) for line in lines for key, value in json.loads(line)["pairs"]]


def key_values(
    pairs: Sequence[tuple[str, str]], count_tokens: CountTokens, num_tokens: int, num_cases: int, rng: random.Random
) -> Iterator[Corpus]:
    """Lost in the middle's key-value task: one JSON object, a pair on each line, asked by key."""

    def line(key: str, value: str) -> str:
        return f'"{key}": "{value}"'

    offset, num_left = 0, num_cases
    while num_left > 0 and offset < len(pairs):
        count = _as_many(pairs[offset:], line, count_tokens, num_tokens)
        mine = pairs[offset : offset + count]
        offset += count
        text, starts, lines = _joined(mine, line, ",\n", "{", "}")
        cases = []
        for number in sorted(rng.sample(range(len(mine)), min(len(mine), num_left))):
            key, value = mine[number]
            question = f'What is the value of the key "{key}" in the JSON object?'
            cases.append(Case.of(text, question, [(starts[number], lines[number], value)], "key-value"))
        num_left -= len(cases)
        yield Corpus(text, tuple(cases))


def records(haystack: Haystack, num_tokens: int, num_records: int, num_asked: int, rng: random.Random) -> Corpus:
    """``num_records`` look-alike records in prose: sentences with names, with amounts, key-value lines, table rows.

    Their keys differ by a digit or two. ``num_asked`` are asked for, a third of them in another writing of the key;
    groups are the shapes, with ``, reformatted`` for those.
    """
    shapes = ("sentence", "amount", "line", "row")
    share = num_records // len(shapes)
    blocks: list[str] = []
    inside: list[list[tuple[str, str, str, str]]] = []  # (shape, record, key, value) of each block
    for shape in shapes:
        numbers = rng.sample(range(8 * share), share)
        for first in range(0, share, 10):
            told = [(shape, *_record(shape, number, rng)) for number in numbers[first : first + 10]]
            lines = [record for _, record, _, _ in told]
            if shape == "row":
                lines = ["| Container | Berth | Seal |", "| --- | --- | --- |", *lines]
            blocks.append(" ".join(lines) if shape in ("sentence", "amount") else "\n\n" + "\n".join(lines) + "\n\n")
            inside.append(told)
    order = rng.sample(range(len(blocks)), len(blocks))
    text, starts = plant(haystack.stretch(num_tokens, rng), [blocks[n] for n in order], _even(len(order)))
    stands = []
    for number, start in zip(order, starts, strict=True):
        offset = 0
        for shape, record, key, value in inside[number]:
            offset = blocks[number].index(record, offset)
            stands.append((shape, key, (start + offset, record, value)))
            offset += len(record)
    cases = []
    for place, number in enumerate(sorted(rng.sample(range(len(stands)), num_asked))):
        shape, key, wanted = stands[number]
        is_other = place % 3 == 2
        asked = CODE_WRITINGS[place // 3 % len(CODE_WRITINGS)](key) if is_other else key
        cases.append(Case.of(text, _question(shape, asked), [wanted], f"{shape}, reformatted" if is_other else shape))
    return Corpus(text, tuple(cases))


def _record(shape: str, number: int, rng: random.Random) -> tuple[str, str, str]:
    code = f"{rng.choice('BDFGKLMP')}{rng.choice('RSTVXZ')}-{rng.randrange(10**4):04d}"
    if shape == "sentence":
        key, value = f"INV-2024-{number:06d}", f"{rng.choice(_FIRST)} {rng.choice(_LAST)}"
        return f"Voucher {key} was made out to {value} on the same day.", key, value
    if shape == "amount":
        key, value = (
            f"POL-{number // 100:04d}-{number % 100:02d}",
            f"EUR {rng.randrange(1000, 9999):,}.{rng.randrange(100):02d}",
        )
        return f"Policy {key} carries an excess of {value} for each claim.", key, value
    if shape == "line":
        key = f"SN-{number:05d}-{'ABCDEFGH'[number % 8]}"
        return f"{key}: {code}", key, code
    key = f"MSKU-{number:07d}"
    return f"| {key} | {rng.randrange(1, 99)} | {code} |", key, code


def _question(shape: str, key: str) -> str:
    return {
        "sentence": f"To whom was voucher {key} made out?",
        "amount": f"What is the excess of policy {key}?",
        "line": f"What is {key}?",
        "row": f"What is the seal of container {key}?",
    }[shape]


_FIRST = "Anna Berta Carl Doris Emil Frida Georg Hanna Ivo Jutta Karl Lena Moritz Nora Otto Paula".split()
_LAST = "Adler Brandt Conrad Dietz Engel Falk Gruber Heller Isler Jansen Keller Lorenz Maurer Nagel Ott Pohl".split()


def _as_many(
    pairs: Sequence[tuple[str, str]], line: Callable[[str, str], str], count_tokens: CountTokens, num_tokens: int
) -> int:
    sample = pairs[:50]
    each = count_tokens("\n".join(line(*pair) for pair in sample)) / len(sample)
    return max(1, min(len(pairs), int(num_tokens / each)))


def _joined(
    pairs: Sequence[tuple[str, str]], line: Callable[[str, str], str], separator: str, before: str = "", after: str = ""
) -> tuple[str, list[int], list[str]]:
    lines = [line(*pair) for pair in pairs]
    starts, length = [], len(before)
    for each in lines:
        starts.append(length)
        length += len(each) + len(separator)
    return before + separator.join(lines) + after, starts, lines


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _even(count: int) -> list[float]:
    return [number / max(count - 1, 1) for number in range(count)]
