"""Readings in the server's exact prompt formats: numbered passages, questions, short answers copied from them.

Kinds: one question or several turns over the same passages; a conversation whose earlier turns come without passages
(what the server writes when a document question follows others); many passages, up to the longest reading; made-up
look-alikes by the dozen; the first sentence as a summary. Every kind has questions that the passages do not answer.
"""

from __future__ import annotations

import random
from collections import Counter

import numpy as np

from training import synthetic
from training.examples import Context, Encoder, Piece, TreeSampler
from training.forest import Branch, Tree
from training.shards import FULL, Document, look_row

SHARES = {"turns": 0.44, "conversation": 0.12, "long": 0.28, "lookalikes": 0.12, "summary": 0.04}  # of the tokens
QUESTION_WEIGHT, PASSAGE_WEIGHT = 15, 10  # percent: words are learnt from prose, this is to learn reading
SUMMARIES = (
    "Summarise the passage in one sentence.", "What is this about?", "What does the passage say in short?",
    "Give a one-sentence summary.",
)  # fmt: skip


class Readings:
    """Endless documents; `longest` is the most tokens of passages in one, about."""

    def __init__(self, contexts: list[Context], encoder: Encoder, seed: int, longest: int = 12_288) -> None:
        self.sampler = TreeSampler(contexts, encoder, seed)
        self.encoder, self.longest = encoder, longest
        self.rng: random.Random = self.sampler.rng
        self.tokens: Counter[str] = Counter()
        self.user = encoder.begin[1]
        self.asked_first = encoder("Question:")
        first_sentences = ("wiki-synth", "simplewiki-synth")
        self.summarised = [c for c in contexts if c.source in first_sentences and _opens_with_title(c)]

    def document(self) -> Document:
        """A document of the kind that has the fewest tokens for its share; `tokens` counts them."""
        kinds = [kind for kind in SHARES if kind != "summary" or self.summarised]
        while True:
            kind = min(kinds, key=lambda kind: self.tokens[kind] / SHARES[kind])
            tree = self._tree(kind)
            if tree.branches:
                self.rng.shuffle(tree.branches)  # or what the passages do not answer would always come last
                document = self._conversation(tree) if kind == "conversation" else self._turns(tree)
                self.tokens[kind] += len(document)
                return document

    def _tree(self, kind: str) -> Tree:
        rng, sampler = self.rng, self.sampler
        if kind == "long":
            return self._long()
        if kind == "lookalikes":
            return sampler.tree(self._lookalikes(), 0.1, rng.choice([1, 2, 4, 8]))
        if kind == "summary":
            return self._summary()
        tree = sampler.sample(1.0)
        tree.branches = rng.sample(tree.branches, min(len(tree.branches), rng.choice([1, 1, 2, 3, 4, 6])))
        return tree

    def _long(self) -> Tree:
        """Many passages, mostly of a few articles; the questions come after all of them."""
        rng, sampler = self.rng, self.sampler
        wanted = int(np.exp(rng.uniform(np.log(1_000), np.log(max(1_001, self.longest)))))
        pieces: list[Piece] = []
        while sum(len(piece.ids) for piece in pieces) < wanted and len(pieces) < 200:
            near = sampler.contexts_like(sampler.next_context())
            for index in near[: rng.randint(1, 12)]:
                context = sampler.contexts[index]
                pieces.append(Piece(context.ids, context.questions, context.cuts, index))
            if rng.random() < 0.3:
                pieces.append(sampler.made())
        return sampler.tree(pieces, 0.1, rng.choice([1, 2, 3, 4, 6, 8]))

    def _lookalikes(self) -> list[Piece]:
        """Sentences of two frames that differ by their names and values only, cut into passages."""
        statements = synthetic.sentences(self.rng, self.rng.randint(8, 48))
        pieces = []
        while statements:
            number = self.rng.randint(4, 12)
            pieces.append(self.sampler.piece_of(statements[:number], " "))
            statements = statements[number:]
        return pieces

    def _summary(self) -> Tree:
        encoder, context = self.encoder, self.rng.choice(self.summarised)
        root = [*encoder.begin, *encoder.marker(1)]
        base = len(root)
        sentence = context.ids[: context.cuts[1]]
        question = encoder(self.rng.choice(SUMMARIES))
        pointers = [[base + place] for place in range(len(sentence))]
        branch = self.sampler.branch(question, sentence, pointers, (base, base + len(sentence)))
        return Tree(root + context.ids, [branch])

    def _turns(self, tree: Tree) -> Document:
        """The passages and the first question in one turn, each other question in a turn of its own."""
        writer = _Writer()
        writer.plain(tree.root, PASSAGE_WEIGHT)
        for number, branch in enumerate(tree.branches):
            question = self._question(branch)
            ask = [self.user, *self.asked_first] if number else self.encoder.ask
            self._asked(writer, [*ask, *question], branch, 0)
        return writer.document()

    def _conversation(self, tree: Tree) -> Document:
        """Earlier questions and answers without their passages, then the passages and the last question."""
        writer, last = _Writer(), tree.branches[-1]
        writer.plain(tree.root[:1], PASSAGE_WEIGHT)
        for branch in tree.branches[:-1]:
            answer = branch.ids[branch.answer :]
            turn = [self.user, *self._question(branch), self.encoder.end, self.encoder.assistant, *answer]
            writer.plain(turn, PASSAGE_WEIGHT)
        shift = len(writer.ids) - 1
        writer.plain(tree.root[1:], PASSAGE_WEIGHT)
        self._asked(writer, [*self.encoder.ask, *self._question(last)], last, shift)
        return writer.document()

    def _question(self, branch: Branch) -> list[int]:
        return branch.ids[len(self.encoder.ask) : branch.answer - 2]

    def _asked(self, writer: _Writer, asked: list[int], branch: Branch, shift: int) -> None:
        writer.plain([*asked, self.encoder.end, self.encoder.assistant], QUESTION_WEIGHT)
        first = len(writer.ids) - 1  # the token after which the answer comes
        for place, targets in enumerate(branch.pointers):
            for target in targets[:1]:
                low = target + shift
                writer.looks.append(look_row(first + place, low, low + 1, "pointer", 0.2 if place else 1.0))
        if branch.evidence is not None:
            low, high = (border + shift for border in branch.evidence)
            writer.looks += [look_row(first - back, low, high, "evidence") for back in (0, 1, 2)]
        writer.plain(branch.ids[branch.answer :], FULL)


class _Writer:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.weights: list[int] = []
        self.looks: list[tuple[int, int, int, int, int]] = []

    def plain(self, ids: list[int], weight: int) -> None:
        self.ids += ids
        self.weights += [weight] * len(ids)

    def document(self) -> Document:
        looks = np.array(sorted(self.looks), dtype=np.int64).reshape(-1, 5)
        return Document(np.array(self.ids), np.array(self.weights), looks)


def _opens_with_title(context: Context) -> bool:
    """Whether the first sentence says what the article is about, and is neither all of it nor very long."""
    name = context.title.split("(")[0].strip().lower()
    return len(context.cuts) > 2 and 8 <= context.cuts[1] <= 60 and context.text.lower().startswith(name)
