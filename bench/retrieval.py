"""How much of what is asked does retrieval find? Needles in a book, natural questions, and look-alike keys.

    python -m bench.retrieval --short                                        seconds; no data, no weights
    python -m bench.retrieval --book BOOK.txt --questions QA.jsonl.xz        minutes

Needles: twenty sentences planted at depths 0 to 100 % and asked in other words. Questions: lines of JSON with
``context``, ``question``, ``answers`` and ``answer_start``; six hundred contexts make one document. Keys: rows under
ten thousand identifiers that differ by a digit, asked in another writing. Found means that the planted sentence, the
answer or the row stands whole in one of the first five. Nothing in the product is tuned on any of them.
"""

import argparse
import json
import lzma
import platform
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from retrieval.contents import Contents
from retrieval.embedder import Embedder, HashEmbedder, MiniLMEmbedder
from retrieval.faiss_index import FaissIndex
from retrieval.index_memory import IndexMemory
from retrieval.library import Library
from retrieval.passage import Passage, Span
from retrieval.passages import Place, Rankings, compose
from retrieval.search import Search
from retrieval.shelf_files import ShelfFiles
from retrieval.shelves import Shelves
from retrieval.store import Store

FIRST = 5
SEED = 20
TENANT = "bench"


@dataclass(frozen=True)
class Question:
    """What is asked, and where in the text the answer stands."""

    text: str
    answer: Span


NEEDLES = (
    (
        "Old Fenwick kept his savings inside a stuffed pike above the fireplace.",
        "In what did Fenwick conceal the money he had put by?",
    ),
    (
        "The bridge at Dunmarrow was closed to carts after the flood of the green spring.",
        "Which crossing could wagons no longer use once the waters had risen?",
    ),
    (
        "Sister Agathe taught the orphans to read with labels from wine bottles.",
        "By means of what did the nun instruct the parentless children in their letters?",
    ),
    ("Invoice MK-20417 was settled with two barrels of salted herring.", "How was mk20417 paid?"),
    (
        "The duke's physician forbade him to eat plums after sunset.",
        "What fruit was the nobleman not allowed in the evening, on his doctor's orders?",
    ),
    (
        "Nobody in Vellsand will whistle indoors, for fear of calling up the wind.",
        "Why do people of Vellsand avoid whistling inside their houses?",
    ),
    (
        "The first lamp of the Kestrel Rock light was fuelled with sunflower oil.",
        "What burned in the original lantern on Kestrel Rock?",
    ),
    (
        "Professor Imre Halloway proved his theorem on the lid of a piano.",
        "On what surface did the mathematician Halloway work out his demonstration?",
    ),
    (
        "The widow Terese sold her vineyard for a grey mare and a promise.",
        "What did Terese receive in exchange for her land with grapes?",
    ),
    (
        "At Coldharbour the church clock has run eleven minutes fast since the siege.",
        "By how much is the timepiece on the Coldharbour tower ahead?",
    ),
    (
        "The smugglers of Penrose Cove signalled with bed sheets hung in threes.",
        "How did the contraband runners at Penrose communicate from afar?",
    ),
    (
        "Captain Odile Marchetti navigated by the smell of the pine forests.",
        "What scent guided Marchetti when she steered her ship?",
    ),
    (
        "The apprentice baker Jonas burned the wedding cake and fled to Trieste.",
        "Where did the young man run away to after spoiling the pastry for the marriage?",
    ),
    (
        "The archive of the guild of glovers was eaten by goats.",
        "What happened to the records of the association of glove makers?",
    ),
    (
        "Under the tax of the year of the comet, every chimney cost four silver pennies.",
        "How much had to be paid for each smokestack when the comet appeared?",
    ),
    (
        "The parrot of the harbour master could recite the tide tables.",
        "What was the bird belonging to the port official able to repeat from memory?",
    ),
    (
        "Lady Corisande wrote her letters with ink made of elderberries.",
        "From what was the writing fluid of Corisande prepared?",
    ),
    (
        "Room 318 of the Hotel Bellavue is never let in November.",
        "During which month is chamber 318 at the Bellavue always kept empty?",
    ),
    (
        "The regiment's drummer, little Matthias, was deaf from birth.",
        "What affliction had the boy who beat the drum for the soldiers always had?",
    ),
    (
        "To cross the Ashen Marsh one must follow the white stones, never the lanterns.",
        "What should a traveller go by to get safely over the Ashen bog?",
    ),
)


def main() -> int:
    """Run what the arguments allow; 1 when a key was missed, which must never happen."""
    arguments = _arguments()
    embedder: Embedder = HashEmbedder() if arguments.short else MiniLMEmbedder(threads=arguments.threads)
    name = "HashEmbedder" if arguments.short else "MiniLMEmbedder"
    suites = {}
    text, questions = _needles(_book(arguments.book, 200_000 if arguments.short else 1_200_000))
    suites["needles"] = _run("needles", text, questions, embedder)
    if arguments.questions:
        text, questions = _natural(arguments.questions, arguments.source, arguments.contexts, arguments.sample)
        suites["questions"] = _run("questions", text, questions, embedder)
    text, questions = _keys(1_000 if arguments.short else 10_000)
    # Meaning cannot help here: the hashing embedder keeps this quick.
    suites["keys"] = _run("keys", text, questions, HashEmbedder())
    machine = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processors": arguments.threads,
        "versions": {package: version(package) for package in ("faiss-cpu", "tantivy", "numpy")},
        "seed": SEED,
        "embedder": name,
    }
    print(json.dumps({"bench": "retrieval", **machine, "suites": suites}))
    return 0 if suites["keys"]["passages"] == len(questions) else 1


def _run(name: str, text: str, questions: Sequence[Question], embedder: Embedder) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.txt"
        source.write_bytes(text.encode())
        started = time.perf_counter()
        with closing(Library.open(Path(folder) / "data", embedder)) as library:
            document, _ = library.add(TENANT, name, "text/plain", source)
            library.process(document.id)
            read_seconds = time.perf_counter() - started
            assert library.get(TENANT, document.id).status.value == "ready"
        result = _ask(Path(folder) / "data", document.id, questions, embedder)
    result |= {"questions": len(questions), "characters": len(text), "read_seconds": round(read_seconds, 1)}
    print(f"\n{name}: {len(questions)} questions, {len(text):,} characters, read in {read_seconds:.1f} s")
    for leg in ("keys", "lexical", "dense", "passages"):
        print(f"  {leg:10} {result[leg]:5.0f} found among the first {FIRST}  {result[leg] / len(questions):6.1%}")
    print(f"  first      {result['first']:5.0f} in the first passage       {result['first'] / len(questions):6.1%}")
    print(f"  {result['milliseconds']:.1f} ms a question (median), {result['passage_characters']:.0f} characters given")
    return result


def _ask(data_dir: Path, document_id: str, questions: Sequence[Question], embedder: Embedder) -> dict[str, float]:
    with closing(Store(data_dir)) as store:
        contents = Contents(store.database)
        indexes = data_dir / "indexes"
        files = ShelfFiles(indexes, store, contents, embedder.fingerprint, embedder.dimension, FaissIndex)
        search = Search(store, contents, Shelves(indexes, store, files, IndexMemory(1 << 30)), embedder)
        record = store.record(document_id)
        chunks = {chunk.ordinal: Span(chunk.start, chunk.end) for chunk in contents.chunks(record.number)}
        found = dict.fromkeys(("keys", "lexical", "dense", "passages", "first"), 0)
        seconds, characters = [], 0
        for question in questions:
            started = time.perf_counter()
            rankings = search.rank(question.text, [record])
            passages = compose(store, contents, [record], rankings, FIRST)
            seconds.append(time.perf_counter() - started)
            characters += sum(len(passage.text) for passage in passages)
            for leg, places in _legs(rankings).items():
                found[leg] += any(_overlap(chunks[ordinal], question.answer) for _, ordinal in places[:FIRST])
            found["passages"] += any(_holds(passage, question.answer) for passage in passages)
            found["first"] += bool(passages) and _holds(passages[0], question.answer)
    return {
        **found,
        "milliseconds": round(sorted(seconds)[len(seconds) // 2] * 1000, 2),
        "passage_characters": round(characters / len(questions)),
    }


def _legs(rankings: Rankings) -> dict[str, Sequence[Place]]:
    keys = sorted(rankings.keys, key=lambda place: (sum(rankings.keys[place].forms.values()), place))
    return {"keys": keys, "lexical": rankings.lexical, "dense": [*rankings.dense]}


def _overlap(chunk: Span, answer: Span) -> bool:
    return chunk.start < answer.end and answer.start < chunk.end


def _holds(passage: Passage, answer: Span) -> bool:
    return passage.span.start <= answer.start and answer.end <= passage.span.end


def _needles(book: str) -> tuple[str, list[Question]]:
    order = list(NEEDLES)
    random.Random(SEED).shuffle(order)
    pieces, questions = [], []
    length = last = 0
    for index, (sentence, question) in enumerate(order):
        cut = _sentence_end(book, index * len(book) // (len(order) - 1))
        pieces += [book[last:cut], f" {sentence} "]
        length += cut - last + 1
        questions.append(Question(question, Span(length, length + len(sentence))))
        length += len(sentence) + 1
        last = cut
    return "".join([*pieces, book[last:]]), questions


def _sentence_end(book: str, position: int) -> int:
    if position == 0:
        return 0
    end = book.find(". ", position)
    return end + 1 if end >= 0 else len(book)


def _book(path: Path | None, num_characters: int) -> str:
    if path is not None:
        return path.read_text(encoding="utf-8")[:num_characters]
    words = random.Random(SEED)
    syllables = [a + b for a in "bcdfgklmnprst" for b in ("a", "e", "i", "o", "u", "ar", "en", "il")]
    vocabulary = ["".join(words.choices(syllables, k=words.randint(1, 4))) for _ in range(5_000)]
    sentences: list[str] = []
    length = 0
    while length < num_characters:
        sentences.append(" ".join(words.choices(vocabulary, k=words.randint(5, 25))).capitalize() + ".")
        length += len(sentences[-1]) + 1
    return " ".join(sentences)


def _natural(path: Path, source: str, num_contexts: int, sample: int) -> tuple[str, list[Question]]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["source"] == source]
    draw = random.Random(SEED)
    contexts = list(dict.fromkeys(row["context"] for row in rows))
    offsets: dict[str, int] = {}
    length = 0
    for context in draw.sample(contexts, min(num_contexts, len(contexts))):
        offsets[context] = length
        length += len(context) + 2
    asked = [
        row
        for row in rows
        if row["context"] in offsets and row["answers"] and row["answer_start"] and row["answer_start"][0] >= 0
    ]
    questions = []
    for row in draw.sample(asked, min(sample, len(asked))):
        start = offsets[row["context"]] + row["answer_start"][0]
        questions.append(Question(row["question"], Span(start, start + len(row["answers"][0]))))
    return "\n\n".join(offsets), questions


def _keys(num_keys: int) -> tuple[str, list[Question]]:
    draw = random.Random(SEED)
    rows, spans = [], []
    length = 0
    for number in range(num_keys):
        row = f"Voucher INV-2024-{number:06d} went to clerk {draw.randrange(10**4):04d} of ward {draw.randrange(90)}."
        rows.append(row)
        spans.append(Span(length, length + len(row)))
        length += len(row) + 1
    writings = ("INV-2024-{:06d}", "inv-2024-{:06d}", "INV2024{:06d}", "inv/2024/{:06d}", "INV 2024 {:06d}")
    questions = [
        Question(f"Who got voucher {writings[index % len(writings)].format(number)}?", spans[number])
        for index, number in enumerate(draw.sample(range(num_keys), 200))
    ]
    return "\n".join(rows), questions


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="small made-up texts and the hashing embedder")
    parser.add_argument("--book", type=Path, help="text to plant needles in (first 1.2 million characters)")
    parser.add_argument("--questions", type=Path, help="questions as .jsonl.xz")
    parser.add_argument("--source", default="squad1.1-dev", help="which questions of the file")
    parser.add_argument("--contexts", type=int, default=600, help="how many of their contexts make the document")
    parser.add_argument("--sample", type=int, default=300, help="how many of them are asked")
    parser.add_argument("--threads", type=int, default=1, help="cores for the embedder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
