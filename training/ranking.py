"""Learns how retrieval weighs what its searches found, and when it says that nothing was found.

    python -m training.ranking --questions QA_TRAIN.jsonl.xz --prose BOOKS.jsonl.xz

Every question of ``training.ranking_texts`` is asked of its text, and some without the vectors. Two parts of the texts
are learned from, the third is developed on. Writes ``retrieval/ranking.json``; most of the time goes into embedding.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from retrieval.asked_keys import WHOLE, Met, meet, share
from retrieval.candidates import candidates
from retrieval.contents import Contents
from retrieval.embedder import Embedder, MiniLMEmbedder
from retrieval.faiss_index import FaissIndex
from retrieval.features import NAMES, AskedWords, features
from retrieval.fusion import fuse
from retrieval.holdings import Holdings
from retrieval.index_memory import IndexMemory
from retrieval.keys import KeyShape, QueryKey, query_keys
from retrieval.lexical_index import LexicalQuery
from retrieval.library import Library
from retrieval.passages import Place
from retrieval.ranker import CONFIDENCE_NAMES, Thresholds, confidence_features
from retrieval.rare_words import rare_places
from retrieval.search import RANKED_DEPTH, WEIGHTS
from retrieval.shelf_files import ShelfFiles
from retrieval.shelves import Shelves
from retrieval.store import Store
from retrieval.words import STOP_WORDS
from retrieval.words import words as words_of
from training.ranking_texts import SEED, Text, read_texts

TENANT = "training"
# In texts of at most so many chunks, of questions whose answer is elsewhere this share is told that nothing was found:
# 90 % and what chance may take of it. It costs one found answer in thirty. In long texts, where something is near to
# any question, it would cost one in six: there the share of the found answers that may be lost decides.
SMALL, REFUSED = 300, 0.93
LOST = 0.02
# Rules for what leads: a weak key of this shape, in at most so many places, that is this share of the question.
RULES = tuple(
    (shape, places, part)
    for shape in (KeyShape.VALUE, KeyShape.PHRASE, KeyShape.CODE)
    for places, part in ((1, 0.0), (3, 0.0), (1, 0.5), (3, 0.5), (3, WHOLE))
)


@dataclass(frozen=True)
class Case:
    """A question asked of a text: a row of features for each candidate, and which hold the answer."""

    source: str
    wording: str
    table: np.ndarray
    right: np.ndarray
    lexical: np.ndarray
    dense: np.ndarray
    num_chunks: int
    is_answerable: bool
    met: tuple["MetKey", ...]

    @property
    def has_dense(self) -> bool:
        """Whether it was searched by meaning too."""
        return bool(self.table[:, NAMES.index("has_dense")].any())


@dataclass(frozen=True)
class MetKey:
    """A key that stands among the candidates, in ``num_places`` of the text: its shape, the kind of fact it met, the
    share of the question it is, and ``rows``, which candidates."""

    shape: KeyShape
    kind: str
    num_places: int
    share: float
    rows: tuple[int, ...]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    embedder = MiniLMEmbedder(threads=arguments.threads)
    cases = ask_all(read_texts(arguments.questions, arguments.prose, embedder), embedder)
    write(arguments.out, *learn(cases))


def ask_all(texts: Mapping[str, Sequence[Text]], embedder: Embedder) -> dict[str, list["Case"]]:
    """The cases of each part."""
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, of_part in texts.items():
            cases[name] = list(ask(Path(folder) / name, of_part, embedder))
            num_characters = sum(len(text.text) for text in of_part)
            print(f"{name}: {num_characters:,} characters, {len(cases[name])} questions asked", flush=True)
    return cases


def learn(cases: Mapping[str, Sequence["Case"]]) -> tuple["Fitted", "Fitted", Thresholds]:
    """Both nets, each with mean and scale of its features, and the thresholds."""
    known, development = [*cases["first"], *cases["second"]], cases["development"]
    scorer = fit_scores(known)
    for label, has_dense in (("with vectors", True), ("without", False)):
        for wording in ("as asked", "named", "wordless"):
            shown = [c for c in development if c.is_answerable and c.has_dense == has_dense and c.wording == wording]
            _show(f"{label}, {wording}", shown, scorer)
    _show_rules([c for c in development if c.is_answerable and c.wording == "as asked"], scorer)
    confidence = fit_confidence(*_confidence_rows(known, scorer))
    shown = [case for case in development if case.has_dense]
    sure = _run(confidence, _confidence_rows(shown, scorer)[0])
    found = _confidence_rows(shown, scorer)[1]
    thresholds = fit_thresholds(shown, sure, found)
    _show_refusals(shown, sure, found, thresholds)
    return scorer, confidence, thresholds


def fit_thresholds(cases: Sequence["Case"], sure: np.ndarray, found: np.ndarray) -> Thresholds:
    """``sure`` are log odds, ``found`` whether one of the first five held the answer."""
    as_asked = np.array([case.wording == "as asked" for case in cases])
    is_small = np.array([case.num_chunks <= SMALL for case in cases])
    there = np.array([case.is_answerable for case in cases])
    small = np.quantile(sure[as_asked & is_small & ~there], REFUSED)
    size = max(case.num_chunks for case in cases)
    large = np.quantile(sure[as_asked & found & np.array([case.num_chunks == size for case in cases])], LOST)
    return Thresholds((SMALL, size), (_probability(small), _probability(large)))


def _probability(log_odds: float) -> float:
    return float(1 / (1 + np.exp(-log_odds)))


def _show_refusals(cases: Sequence["Case"], sure: np.ndarray, found: np.ndarray, thresholds: Thresholds) -> None:
    print(thresholds)
    there = np.array([case.is_answerable for case in cases])
    is_refused = np.array([_probability(s) < thresholds(c.num_chunks) for s, c in zip(sure, cases, strict=True)])
    sizes = np.array([case.num_chunks for case in cases])
    wordings = np.array([case.wording for case in cases])
    for least, most in ((0, SMALL), (SMALL, 1000), (1000, 1 << 60)):
        for wording in ("as asked", "named", "wordless"):
            chosen = (least < sizes) & (sizes <= most) & (wordings == wording)
            refused = [np.mean(is_refused[chosen & which]) for which in (~there, found)]
            print(
                f"  {least} to {most} chunks, {wording}: refused {refused[0]:.1%} of {sum(chosen & ~there)} absent, "
                f"{refused[1]:.1%} of {sum(chosen & found)} found among the first five",
                flush=True,
            )


def ask(folder: Path, documents: Sequence[Text], embedder: Embedder, without: int = 6) -> Iterator[Case]:
    """Every question of every text; each ``without``-th once more as long as there are no vectors (0: never)."""
    folder.mkdir()
    with closing(Library.open(folder / "data", embedder)) as library:
        ids = []
        for number, text in enumerate(documents):
            source = folder / f"{number}.txt"
            source.write_bytes(text.text.encode())
            ids.append(library.add(TENANT, str(number), "text/plain", source)[0].id)
            library.process(ids[-1])
    with closing(Store(folder / "data")) as store:
        contents, indexes = Contents(store.database), folder / "data" / "indexes"
        files = ShelfFiles(indexes, store, contents, embedder.fingerprint, embedder.dimension, FaissIndex)
        shelves = Shelves(indexes, store, files, IndexMemory(1 << 30))
        for document_id, text in zip(ids, documents, strict=True):
            record = store.record(document_id)
            holdings = Holdings({0: shelves.open(record)})
            chunks = contents.chunks(record.number)
            for number, question in enumerate(text.questions):
                words = LexicalQuery.of(question.text)
                lexical = holdings.search_words(words, RANKED_DEPTH)
                asked = AskedWords.of(question.text, words, lexical)
                vector = embedder.embed_query(question.text)
                met = meet(contents, question.text, [record])
                rare = rare_places(holdings.search_words, lexical)
                keys = query_keys(question.text)
                content = [word for word in words_of(question.text) if word not in STOP_WORDS]
                for query in (vector, None) if without and number % without == 0 else (vector,):
                    near = dict(list(holdings.nearest(query).items())[:RANKED_DEPTH])
                    found = candidates(store, [record], holdings, lexical.hits, near, query, met, rare.values())
                    if not found:
                        continue
                    spans = [(chunks[one.place[1]].start, chunks[one.place[1]].end) for one in found]
                    yield Case(
                        question.source,
                        question.wording,
                        features(asked, found),
                        np.array([any(a < end and start < b for a, b in question.spans) for start, end in spans]),
                        np.array([one.lexical_rank for one in found]),
                        np.array([one.dense_rank for one in found]),
                        holdings.num_chunks,
                        bool(question.spans),
                        tuple(_met_keys(met, keys, content, [one.place for one in found])),
                    )


def _met_keys(met: Met, keys: Sequence[QueryKey], content: Sequence[str], places: Sequence[Place]) -> Iterator[MetKey]:
    rows: dict[tuple[int, str], set[int]] = {}
    index_of = {place: row for row, place in enumerate(places)}
    for hits in (met.leading, met.weak):
        for place, hit in hits.items():
            for meeting in hit.meetings:
                if place in index_of:
                    rows.setdefault((meeting.key, meeting.fact.kind), set()).add(index_of[place])
    for (number, kind), chosen in rows.items():
        key = keys[number]
        yield MetKey(key.shape, kind, met.num_places[number], share(key, content), tuple(sorted(chosen)))


Fitted = tuple[nn.Module, np.ndarray, np.ndarray]


def fit_scores(cases: Sequence[Case], hidden: int = 24, epochs: int = 16) -> Fitted:
    """Listwise: the share of the right candidates under a softmax over all of the question."""
    torch.manual_seed(SEED)
    cases = [case for case in cases if case.right.any()]
    every = np.concatenate([case.table for case in cases])
    mean, scale = every.mean(0), _scale(every)
    tables = [torch.tensor((case.table - mean) / scale) for case in cases]
    rights = [torch.tensor(case.right) for case in cases]
    net = nn.Sequential(nn.Linear(len(mean), hidden), nn.Tanh(), nn.Linear(hidden, 1))
    num_steps = epochs * (len(cases) // 32)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=num_steps)
    draw = np.random.default_rng(SEED)
    for _ in range(epochs):
        order = draw.permutation(len(cases))
        for batch in order[: len(order) // 32 * 32].reshape(-1, 32):
            scores = net(torch.cat([tables[i] for i in batch]))[:, 0].split([len(tables[i]) for i in batch])
            losses = [
                torch.logsumexp(row, 0) - torch.logsumexp(row[rights[i]], 0)
                for row, i in zip(scores, batch, strict=True)
            ]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()
            schedule.step()
    return net, mean, scale


def fit_confidence(rows: np.ndarray, labels: np.ndarray, hidden: int = 8, epochs: int = 400) -> Fitted:
    """By log loss over questions with the answer among the first five and those without; a calibrated probability."""
    torch.manual_seed(SEED)
    mean, scale = rows.mean(0), _scale(rows)
    x, y = torch.tensor((rows - mean) / scale), torch.tensor(labels, dtype=torch.float32)
    net = nn.Sequential(nn.Linear(rows.shape[1], hidden), nn.Tanh(), nn.Linear(hidden, 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.05)
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(net(x)[:, 0], y).backward()
        optimizer.step()
    return net, mean, scale


def _scale(rows: np.ndarray) -> np.ndarray:
    """Of each column its standard deviation; where nothing varied nothing was learned, so what varies there in use must
    not sway. A chunk with a heading, which these texts have not, once outweighed all else for a scale of 1e-6."""
    scale = rows.std(0)
    return np.where(scale < 1e-3, 1e6, scale).astype(np.float32)


def _run(fitted: Fitted, rows: np.ndarray) -> np.ndarray:
    net, mean, scale = fitted
    with torch.no_grad():
        return net(torch.tensor((rows - mean) / scale))[:, 0].numpy()


def _confidence_rows(cases: Sequence[Case], scorer: Fitted) -> tuple[np.ndarray, np.ndarray]:
    rows, labels = [], []
    for case in cases:
        scores = _run(scorer, case.table)
        rows.append(confidence_features(case.table, scores, case.num_chunks))
        labels.append(bool(case.right[np.argsort(-scores, kind="stable")[:5]].any()))
    return np.array(rows), np.array(labels)


def _show(label: str, cases: Sequence[Case], scorer: Fitted) -> None:
    def ranks(case: Case) -> dict[str, np.ndarray]:
        both = {"lexical": case.lexical, "dense": case.dense}
        orders = {name: [int(i) for i in np.argsort(rank, kind="stable") if rank[i]] for name, rank in both.items()}
        scores = fuse(orders, WEIGHTS)
        fused = np.array([scores.get(i, 0.0) for i in range(len(case.right))])
        legs = {name: np.where(rank > 0, 1 / np.maximum(rank, 1), 0.0) for name, rank in both.items()}
        return legs | {"reciprocal ranks": fused, "learned": _run(scorer, case.table)}

    kept = [(case.right, ranks(case)) for case in cases]
    print(f"development, {label}, {len(kept)} questions: right chunk first / among five")
    for name in kept[0][1]:
        first, five = (
            np.mean([right[np.argsort(-scores[name], kind="stable")[:k]].any() for right, scores in kept])
            for k in (1, 5)
        )
        print(f"  {name:18} {first:.1%} / {five:.1%}", flush=True)
    for source in dict.fromkeys(case.source for case in cases):
        own = [pair for case, pair in zip(cases, kept, strict=True) if case.source == source]
        figures = {
            name: [np.mean([right[np.argsort(-s[name], kind="stable")[:k]].any() for right, s in own]) for k in (1, 5)]
            for name in kept[0][1]
        }
        told = ", ".join(f"{name} {first:.1%} / {five:.1%}" for name, (first, five) in figures.items())
        print(f"    {source}, {len(own)}: {told}", flush=True)


def _show_rules(cases: Sequence[Case], scorer: Fitted) -> None:
    """What each rule for leading keys does to the questions it touches, beside the ranking without it."""
    scored = [(case, _run(scorer, case.table)) for case in cases]

    def found(case: Case, scores: np.ndarray, first: set[int]) -> tuple[bool, bool]:
        order = sorted(range(len(scores)), key=lambda row: (row not in first, -scores[row]))
        return bool(case.right[order[:1]].any()), bool(case.right[order[:5]].any())

    for shape, places, part in RULES:
        for kinds in (("key_value",), ("identifier",), ("date", "amount", "duration", "term", "obligation")):
            touched = []
            for case, scores in scored:
                first = {
                    row
                    for key in case.met
                    if key.shape is shape and key.kind in kinds and key.num_places <= places and key.share >= part
                    for row in key.rows
                }
                if first:
                    touched.append((found(case, scores, set()), found(case, scores, first)))
            if touched:
                (a, b), (c, d) = (np.mean([pair[side] for pair in touched], axis=0) for side in (0, 1))
                print(
                    f"  {shape.value} in <= {places} places, share >= {part}, {kinds[0]}: {len(touched)} questions, "
                    f"without {a:.1%} / {b:.1%}, leading {c:.1%} / {d:.1%}",
                    flush=True,
                )


def write(path: Path, scorer: Fitted, confidence: Fitted, thresholds: Thresholds) -> None:
    """Both nets and the thresholds as JSON, six digits each."""

    def numbers(net: nn.Sequential, mean: np.ndarray, scale: np.ndarray) -> dict[str, object]:
        inner, outer = net[0], net[2]
        arrays = {
            "mean": mean,
            "scale": scale,
            "inner": inner.weight.detach().numpy().T,
            "bias": inner.bias.detach().numpy(),
            "outer": outer.weight.detach().numpy()[0],
        }
        rounded = {name: np.vectorize(lambda x: float(f"{x:.6g}"))(array).tolist() for name, array in arrays.items()}
        return rounded | {"offset": float(outer.bias.detach()[0])}

    stored = {
        "features": NAMES,
        "confidence_features": CONFIDENCE_NAMES,
        "score": numbers(*scorer),
        "confidence": numbers(*confidence),
        "thresholds": asdict(thresholds),
    }
    path.write_text(json.dumps(stored) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--questions", type=Path, required=True, help="questions as .jsonl.xz")
    parser.add_argument("--prose", type=Path, required=True, help="documents that nothing is asked about, as .jsonl.xz")
    parser.add_argument("--out", type=Path, default=Path("retrieval/ranking.json"))
    parser.add_argument("--threads", type=int, default=1, help="cores for the embedder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
