"""Tokenises questions once and samples question trees from them: one to five numbered passages, all their questions."""

from __future__ import annotations

import bisect
import pickle
import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from training import cloze, synthetic
from training.contamination import Evaluation, evaluation_texts
from training.corpus import records
from training.forest import Branch, Tree

SENTENCE = re.compile(r"(?<=[.!?])(?=\s+[A-Z\"(])|(?<=[.!?]\")(?=\s+[A-Z])")
NOT_FOUND = "Not found in the passages."
LONGEST_ANSWER = 24
SHARES = {
    "squad1.1": 0.56, "simplewiki-synth": 0.12, "wiki-synth": 0.05, "qamr": 0.05, "factbook-templ": 0.04,
    "wikitablequestions": 0.04, "afriqa": 0.03, "nq-gold": 0.02, "nq-qed": 0.003, "fairytaleqa": 0.05,
    "openstax-keyterms": 0.007,
}  # fmt: skip
# How much of a context is read, in tokens, and how often: the sentences around an answer, where most questions a second
# are learnt; a short passage; most of a paragraph.
BOUNDS = {"sentence": (12, 70), "short": (30, 110), "paragraph": (120, 260)}
CLOZES = 3
LENGTHS = {"sentence": 0.6, "short": 0.32, "paragraph": 0.08}


@dataclass(slots=True)
class Question:
    ids: list[int]
    answer: list[int]
    answer_text: str
    start: int  # token range of the answer in the context
    end: int
    pointers: list[int]


@dataclass(slots=True)
class Context:
    source: str
    title: str
    text: str
    ids: list[int]
    cuts: list[int]  # token indices where a passage may begin
    questions: list[Question] = field(default_factory=list)


@dataclass(slots=True)
class Piece:
    """One passage of a prompt: token ids, its questions with places relative to it, sentence borders."""

    ids: list[int]
    questions: list[Question]
    cuts: list[int]
    context: int = -1


class Encoder:
    """Token ids of prompt parts; joined, they are the ids of the joined text (checked by a test)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.begin = [1, tokenizer.token_to_id("<|user|>")]
        self.end, self.assistant = tokenizer.token_to_id("<|end|>"), tokenizer.token_to_id("<|assistant|>")
        self.ask = self("x\n\nQuestion:")[len(self("x")) :]
        self.not_found = self(NOT_FOUND)
        self.word_start = {i for t, i in tokenizer.get_vocab().items() if t.startswith("▁")}

    def __call__(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def marker(self, number: int) -> list[int]:
        return self("[1]") if number == 1 else self(f"x\n\n[{number}]")[len(self("x")) :]

    def context(self, source: str, title: str, text: str) -> tuple[Context, list[int]]:
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        starts = [start for start, _ in encoding.offsets]
        cuts = {0}
        for match in SENTENCE.finditer(text):
            at = bisect.bisect_left(starts, match.end())
            if at < len(starts) and encoding.ids[at] in self.word_start:
                cuts.add(at)
        return Context(source, title, text, encoding.ids, sorted(cuts)), starts

    def question(self, context: Context, starts: list[int], question: str, answer: str, at: int) -> Question | None:
        """None when the answer is too long to be a short span."""
        ids = self(answer)
        if len(ids) > LONGEST_ANSWER:
            return None
        first = bisect.bisect_right(starts, at) - 1
        last = bisect.bisect_left(starts, at + len(answer))
        span, before = context.ids[first:last], context.ids[max(first - 1, 0) : last]
        if first and ids == before:
            pointers = list(range(first - 1, last))
        elif ids == span or ids[1:] == span[1:]:
            pointers = list(range(first, last))
        elif ids[1:] == span:
            pointers = list(range(max(first - 1, 0), last))
        else:
            pointers = [first]
        return Question(self(question), ids, answer, first, last, pointers)


def load_contexts(data: Path, encoder: Encoder, evaluation: Evaluation) -> tuple[list[Context], Counter[str]]:
    """All training contexts that share no run of words with the evaluation texts, and how many of each source do."""
    found: dict[str, tuple[Context, list[int]] | None] = {}
    dropped: Counter[str] = Counter()
    for name in ("qa_train.jsonl.xz", "qa_train_synth.jsonl.xz"):
        for r in records(data / name):
            places = r["answer_start"] or []
            usable = [(a, s) for a, s in zip(r["answers"], places, strict=False) if s >= 0]
            if r["source"] not in SHARES or not usable:
                continue
            key = " ".join(r["context"].lower().split())
            if key not in found:
                shared = r["context"] in evaluation
                dropped[r["source"]] += shared
                found[key] = None if shared else encoder.context(r["source"], r["title"], r["context"])
            entry = found[key]
            if entry is None:
                continue
            context, starts = entry
            answer, at = usable[0]
            if context.text[at : at + len(answer)] == answer:
                question = encoder.question(context, starts, r["question"], answer, at)
                if question:
                    context.questions.append(question)
    contexts = [entry[0] for entry in found.values() if entry is not None and entry[0].questions]
    return contexts, +dropped


def cached_contexts(data: Path, encoder: Encoder, cache: Path) -> list[Context]:
    """`load_contexts`, kept in `cache` (our own pickle), which must be deleted when the tokenizer changes."""
    if cache.exists():
        with cache.open("rb") as file:
            return pickle.load(file)
    contexts, dropped = load_contexts(data, encoder, Evaluation(evaluation_texts(data)))
    num_questions = sum(len(context.questions) for context in contexts)
    print(f"{len(contexts)} contexts, {num_questions} questions; dropped, shared with evaluation: {dict(dropped)}")
    with cache.open("wb") as file:
        pickle.dump(contexts, file)
    return contexts


@dataclass(frozen=True, slots=True)
class Mixture:
    """What trees are made of: shares of the sources and of the lengths, and how often what is added to them."""

    shares: dict[str, float] = field(default_factory=lambda: dict(SHARES))
    lengths: dict[str, float] = field(default_factory=lambda: dict(LENGTHS))
    unanswerable: float = 0.1  # questions of other passages for each of the passages' own
    cloze: float = 0.0  # of the contexts: questions made from their sentences, CLOZES at most


class TreeSampler:
    """Endless question trees; after a tenth of the way (`progress`) half of them have several passages."""

    def __init__(self, contexts: list[Context], encoder: Encoder, seed: int, mixture: Mixture | None = None) -> None:
        self.mixture = mixture or Mixture()
        self.rng = random.Random(seed)
        self.encoder = encoder
        self.contexts = contexts
        self.by_source: dict[str, list[int]] = defaultdict(list)
        self.by_title: dict[str, list[int]] = defaultdict(list)
        for index, context in enumerate(contexts):
            self.by_source[context.source].append(index)
            self.by_title[context.title].append(index)
        shares = self.mixture.shares
        self.sources = [source for source in shares if shares[source] and self.by_source[source]]
        self.weights = [shares[source] for source in self.sources]
        self.markers: dict[int, list[int]] = {}
        self.queues: dict[str, list[int]] = defaultdict(list)

    def sample(self, progress: float) -> Tree:
        rng = self.rng
        number = 1 if progress < 0.1 else rng.choice([1, 1, 1, 1, 1, 2, 2, 3, 4, 5])
        lengths = {"sentence": 1.0} if progress < 0.1 else self.mixture.lengths
        length = rng.choices(list(lengths), list(lengths.values()))[0]
        pieces = [self._piece(length) for _ in range(number)]
        if number > 1 and rng.random() < 0.4:
            title = next((self.contexts[p.context].title for p in pieces if p.context >= 0), "")
            near = rng.sample(self.by_title[title], min(number, len(self.by_title[title])))
            pieces = [self._cut(self.contexts[i], i, length) for i in near] + pieces[len(near) :]
        unanswerable = self.mixture.unanswerable * (0.5 if progress < 0.3 else 1)
        return self.tree(pieces, unanswerable, 8 if number == 1 else 24)

    def marker(self, number: int) -> list[int]:
        if number not in self.markers:
            self.markers[number] = self.encoder.marker(number)
        return self.markers[number]

    def contexts_like(self, index: int) -> list[int]:
        """Contexts of the same article, this one among them, in random order."""
        alike = self.by_title[self.contexts[index].title]
        return self.rng.sample(alike, len(alike))

    def next_context(self) -> int:
        source = self.rng.choices(self.sources, self.weights)[0]
        if not self.queues[source]:
            self.queues[source] = self.rng.sample(self.by_source[source], len(self.by_source[source]))
        return self.queues[source].pop()

    def _piece(self, length: str) -> Piece:
        draw = self.rng.random()
        if draw < 0.09:
            return self.made()
        index = self.next_context()
        piece = self._cut(self.contexts[index], index, length)
        return self._with_needle(piece) if draw < 0.2 else piece

    def _cut(self, context: Context, index: int, length: str) -> Piece:
        """The whole context, or a window at sentence borders around one question's answer and every other inside."""
        rng, size = self.rng, len(context.ids)
        least, most = BOUNDS[length]
        if len(context.questions) == 1:
            most = max(least, most // 2 + 30)  # what is read for one question alone is dear
        whole = rng.randint(least, most)
        if size <= whole:
            low, high = 0, size
        else:
            anchor = rng.choice(context.questions)
            spare = max(4, whole - (anchor.end - anchor.start))
            before = max(0, anchor.start - rng.randint(0, spare))
            low = context.cuts[bisect.bisect_right(context.cuts, before) - 1]
            if anchor.start - low > 2 * whole:
                low = max((c for c in context.cuts if c <= anchor.start), default=0)
            borders = [*context.cuts[1:], size]
            wanted = max(anchor.end, low + whole)
            place = min(len(borders) - 1, bisect.bisect_left(borders, wanted))
            if borders[place] - wanted > whole and place and borders[place - 1] >= anchor.end:
                place -= 1
            high = max(anchor.end, min(borders[place], low + 3 * whole))
        kept = []
        made = self._clozes(context, low, high) if rng.random() < self.mixture.cloze else []
        for q in [*context.questions, *made]:
            if low <= q.start and q.end <= high and all(low <= p < high for p in q.pointers):
                kept.append(
                    Question(q.ids, q.answer, q.answer_text, q.start - low, q.end - low, [p - low for p in q.pointers])
                )
        return Piece(context.ids[low:high], kept, [c - low for c in context.cuts if low <= c < high], index)

    def _clozes(self, context: Context, low: int, high: int) -> list[Question]:
        """Questions about the tokens from `low` to `high` that their own sentences make; places in the context."""
        starts = [start for start, _ in self.encoder.tokenizer.encode(context.text, add_special_tokens=False).offsets]
        first, last = starts[low], starts[high] if high < len(starts) else len(context.text)
        made = cloze.clozes(self.rng, context.text[first:last], CLOZES)
        found = (
            self.encoder.question(
                context, starts, c.question, context.text[first + c.start : first + c.end], first + c.start
            )
            for c in made
        )
        return [question for question in found if question is not None]

    def _question_of(self, made: synthetic.Made, at: int) -> tuple[list[int], Question]:
        """Ids of the statement as they stand after a space, and its question with places shifted by `at`."""
        context, starts = self.encoder.context("", "", made.text)
        asked = self.rng.choice(made.questions)
        question = self.encoder.question(context, starts, asked, made.text[made.start : made.end], made.start)
        assert question is not None
        question.start, question.end = question.start + at, question.end + at
        question.pointers = [p + at for p in question.pointers]
        return context.ids, question

    def made(self) -> Piece:
        rng = self.rng
        kind = rng.random()
        header = ""
        if kind < 0.5:
            statements, newline = synthetic.sentences(rng, rng.randint(2, 7)), False
        elif kind < 0.8:
            statements, newline = synthetic.key_value_lines(rng), True
        else:
            header, statements = synthetic.table_rows(rng)
            newline = True
        return self.piece_of(statements, "\n" if newline else " ", header, 4)

    def piece_of(self, statements: list[synthetic.Made], between: str, header: str = "", most: int = 24) -> Piece:
        """One passage of made-up statements, with at most `most` of their questions."""
        text = between.join([header] * bool(header) + [made.text for made in statements])
        context, starts = self.encoder.context("", "", text)
        at = len(header) + 1 if header else 0
        questions = []
        for made in statements:
            value, asked = made.text[made.start : made.end], self.rng.choice(made.questions)
            question = self.encoder.question(context, starts, asked, value, at + made.start)
            if question:
                questions.append(question)
            at += len(made.text) + 1
        return Piece(context.ids, self.rng.sample(questions, min(most, len(questions))), context.cuts)

    def _with_needle(self, piece: Piece) -> Piece:
        at = self.rng.choice([*piece.cuts, len(piece.ids)])
        ids, question = self._question_of(synthetic.sentences(self.rng, 1)[0], at)
        shift = len(ids)
        for q in piece.questions:
            if q.start < at < q.end:
                return piece
        questions = [question]
        for q in piece.questions:
            move = shift if q.start >= at else 0
            pointers = [p + (shift if p >= at else 0) for p in q.pointers]
            questions.append(Question(q.ids, q.answer, q.answer_text, q.start + move, q.end + move, pointers))
        cuts = [c for c in piece.cuts if c <= at] + [at + shift] + [c + shift for c in piece.cuts if c > at]
        return Piece(piece.ids[:at] + ids + piece.ids[at:], questions, cuts, piece.context)

    def tree(self, pieces: list[Piece], unanswerable: float, most: int) -> Tree:
        rng, encoder = self.rng, self.encoder
        rng.shuffle(pieces)
        root = list(encoder.begin)
        branches: list[Branch] = []
        for number, piece in enumerate(pieces):
            root += self.marker(number + 1)
            base = len(root)
            root += piece.ids
            for q in piece.questions:
                low = max((c for c in piece.cuts if c <= q.start), default=0)
                high = min((c for c in piece.cuts if c >= q.end), default=len(piece.ids))
                pointers = [[base + p] for p in q.pointers]
                branches.append(self.branch(q.ids, q.answer, pointers, (base + low, base + high)))
        branches = rng.sample(branches, min(most, len(branches)))
        wanted = sum(rng.random() < unanswerable for _ in range(len(branches) or 1))
        for _ in range(wanted):
            branch = self._foreign(pieces)
            if branch:
                branches.append(branch)
        return Tree(root, branches)

    def _foreign(self, pieces: list[Piece]) -> Branch | None:
        """A question of another context, often of the same title, whose answer is in none of the passages."""
        rng = self.rng
        used = {piece.context for piece in pieces if piece.context >= 0}
        titles = [self.contexts[i].title for i in used]
        pool = self.by_title[rng.choice(titles)] if titles and rng.random() < 0.6 else range(len(self.contexts))
        other = rng.choice(pool)
        if other in used:
            return None
        q = rng.choice(self.contexts[other].questions)
        if any(q.answer_text.lower() in self.contexts[i].text.lower() for i in used):
            return None
        return self.branch(q.ids, self.encoder.not_found, [], None)

    def branch(
        self, question: list[int], answer: list[int], pointers: list[list[int]], evidence: tuple[int, int] | None
    ) -> Branch:
        encoder = self.encoder
        head = [*encoder.ask, *question, encoder.end, encoder.assistant]
        return Branch([*head, *answer, encoder.end], len(head), pointers, evidence)

    def step(self, tokens: int, progress: float) -> list[Tree]:
        """Trees of about `tokens` tokens in all."""
        trees: list[Tree] = []
        total = 0
        while total < tokens:
            tree = self.sample(progress)
            if tree.branches and len(tree.root) > 8:
                trees.append(tree)
                total += len(tree)
        return trees

    def rng_for_rows(self) -> np.random.Generator:
        return np.random.default_rng(self.rng.getrandbits(63))
