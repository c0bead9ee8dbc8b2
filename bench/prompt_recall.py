"""What is found in a prompt beside what is found in a document of the same text, and what either costs.

    python -m bench.prompt_recall --books BOOKS --tokens 16384 65536 262144 --cases 60

Sentences are planted in real prose and asked by name and, without a word of theirs, described (``bench.recall``). A
prompt has vectors for little of it, a document for all. Told are how often the sentence stands whole in the first five
passages, with and without the threshold that says "not found"; how often a question about a sentence that is not there
is told so; and how many rows were compared for a question, which is nearly all that it costs: ``--seconds`` measures
that, where no vector of a row is remembered from one question to the next. Tokens are of 4.45 characters, as in prose.
"""

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from bench.recall.cases import Corpus, num_found
from bench.recall.haystack import Haystack
from bench.recall.prose import single
from bench.throughput import describe_machine
from retrieval.embedder import MiniLMEmbedder
from retrieval.library import Library
from retrieval.passage import SearchResult
from retrieval.prompt_archive import PromptArchive
from retrieval.prompt_part import PromptPart

TENANT = "prompts"
FIRST = 5
SEED = 20
CHARACTERS_PER_TOKEN = 4.45

Told = Counter[str]


class Remembering(MiniLMEmbedder):
    """Counts the vectors that are wanted; computes each once unless it ``is_measured`` what they cost."""

    def __init__(self, is_measured: bool) -> None:
        super().__init__(threads=1)
        self._is_measured = is_measured
        self._known: dict[str, np.ndarray] = {}
        self.num_wanted = 0

    def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        self.num_wanted += len(texts)
        if self._is_measured or not texts:
            return super().embed_passages(texts)
        if missing := [text for text in dict.fromkeys(texts) if text not in self._known]:
            self._known.update(zip(missing, super().embed_passages(missing), strict=True))
        return np.stack([self._known[text] for text in texts])


def ask(
    corpus: Corpus, absent: Sequence[str], search: Callable[[str], SearchResult], told: Told, embedder: Remembering
) -> None:
    """Put every question of a text, and some about others, to ``search``, and count."""
    for case in corpus.cases:
        started, before = time.process_time(), embedder.num_wanted
        result = search(case.question)
        told[f"{case.group} cpu_seconds"] += time.process_time() - started
        told[f"{case.group} rows"] += embedder.num_wanted - before - 1  # but for the question
        stands = num_found(case, [passage.span for passage in result.passages]) == len(case.parts)
        told[f"{case.group} asked"] += 1
        told[f"{case.group} among five"] += stands
        told[f"{case.group} found"] += stands and result.found
    for question in absent:
        told["absent asked"] += 1
        told["absent told"] += not search(question).found


def in_prompt(corpus: Corpus, absent: Sequence[str], embedder: Remembering, folder: Path) -> Told:
    told: Told = Counter()
    with closing(PromptArchive(folder / "prompts", embedder)) as archive:
        started = time.process_time()
        with archive.opened(TENANT, [PromptPart("message", 0, corpus.text)]) as prompt:
            told["index cpu_seconds"] += time.process_time() - started
            ask(corpus, absent, lambda question: prompt.search(question, FIRST), told, embedder)
            told["index bytes"] += prompt.index_bytes
    return told


def in_document(corpus: Corpus, absent: Sequence[str], embedder: Remembering, folder: Path) -> Told:
    told: Told = Counter()
    with closing(Library.open(folder / "data", embedder)) as library:
        upload = folder / "upload"
        upload.write_bytes(corpus.text.encode())
        started = time.process_time()
        document, _ = library.add(TENANT, "text", "text/plain", upload)
        library.process(document.id)
        told["index cpu_seconds"] += time.process_time() - started
        ask(corpus, absent, lambda question: library.search(TENANT, question, [document.id], FIRST), told, embedder)
        told["index bytes"] += sum(library.stats().host_bytes.values())
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--books", type=Path, required=True, help="a directory of books in plain text")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16_384, 65_536, 262_144])
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--seconds", action="store_true", help="no vector is remembered: CPU seconds are right")
    parser.add_argument("--no-documents", action="store_true", help="prompts alone")
    arguments = parser.parse_args()
    embedder = Remembering(arguments.seconds)
    embedder.embed_query("The weights are loaded.")
    haystack = Haystack.of(arguments.books, lambda text: round(len(text) / CHARACTERS_PER_TOKEN))
    ways = {"prompt": in_prompt} if arguments.no_documents else {"prompt": in_prompt, "document": in_document}
    for num_tokens in arguments.tokens:
        corpora = list(single(haystack, num_tokens, arguments.cases, random.Random(SEED)))
        # What is asked of one text is not in another, whose book and sentences are others.
        others = [
            [case.question for case in corpora[n - 1].cases] if len(corpora) > 1 else [] for n in range(len(corpora))
        ]
        totals: dict[str, Told] = {way: Counter() for way in ways}
        for corpus, absent in zip(corpora, others, strict=True):
            for way, run in ways.items():
                with tempfile.TemporaryDirectory() as folder:
                    totals[way].update(run(corpus, absent, embedder, Path(folder)))
        for way, told in totals.items():
            figures = {name: round(count, 3) for name, count in sorted(told.items())}
            print(json.dumps({"tokens": num_tokens, "texts": len(corpora), "way": way, **figures}), flush=True)
    print(json.dumps({"bench": "prompt_recall", "seed": SEED, "machine": describe_machine(1)}))


if __name__ == "__main__":
    main()
