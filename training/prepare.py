"""Makes the packed corpus from the training text: prose and readings as token shards, with what was left out and why.

    python -m training.prepare --data DATA --out packed

Prose: one document in 200 (by its title) goes to the held-out shard; paragraphs that share twelve words in a row with
an evaluation set are dropped, from the held-out documents too. Readings: questions whose context shares such a run
are dropped; the rest are written in the server's prompt formats (`training.readings`).
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from training.contamination import Evaluation, evaluation_texts
from training.corpus import data_directory, is_held_out, records
from training.examples import Encoder, load_contexts
from training.readings import Readings
from training.shards import Document, ShardWriter, write_manifest

BATCH = 256


class Prose:
    """Pretraining documents of all files in turn, cleaned; counts what was dropped."""

    def __init__(self, data: Path, evaluation: Evaluation, seed: int) -> None:
        self.files = sorted((data / "pretrain").glob("*.jsonl.xz"))
        self.evaluation, self.rng = evaluation, random.Random(seed)
        self.dropped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(title, text) of every document, the files interleaved so that each part of the corpus is a sample of all."""
        open_files = {file: records(file) for file in self.files}
        weights = {file: file.stat().st_size for file in self.files}
        while open_files:
            file = self.rng.choices(list(open_files), [weights[file] for file in open_files])[0]
            # About as many bytes from each file as its share: a book at a time, or many short articles.
            for record in itertools.islice(open_files[file], 1 if "books" in file.name else 40):
                text, dropped = self.evaluation.clean(record["text"])
                self.dropped["paragraphs"] += dropped
                if text.strip():
                    yield record["title"], f"{record['title']}\n{text}"
            following = next(open_files[file], None)
            if following is None:
                del open_files[file]
            else:
                open_files[file] = itertools.chain([following], open_files[file])


def write_prose(
    prose: Prose, tokenizer: Tokenizer, kept: ShardWriter, held: ShardWriter, tokens: int
) -> dict[str, int]:
    """Tokenises in batches, each document after the begin token, until `tokens` are written; the held-out bytes."""
    counts = {"prose_bytes": 0, "held_out_bytes": 0, "prose_tokens": 0}
    documents = iter(prose)
    while counts["prose_tokens"] < tokens and (batch := list(itertools.islice(documents, BATCH))):
        texts = [text for _, text in batch]
        for (title, text), encoding in zip(batch, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            is_held = is_held_out(title)
            document = Document(np.array([1, *encoding.ids, 2]))
            (held if is_held else kept).add(document)
            counts["held_out_bytes" if is_held else "prose_bytes"] += len(text.encode())
            if not is_held:
                counts["prose_tokens"] += len(document)
    kept.flush()
    held.flush()
    return counts


def write_readings(readings: Readings, writer: ShardWriter, tokens: int) -> None:
    """Documents until `tokens` are together."""
    while readings.tokens.total() < tokens:
        writer.add(readings.document())
    writer.flush()


def prepare(arguments: argparse.Namespace) -> dict[str, object]:
    data, out = data_directory(arguments.data), arguments.out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    evaluation = Evaluation(evaluation_texts(data))
    print(f"{len(evaluation.runs):,} runs of twelve words in the evaluation sets", flush=True)
    encoder = Encoder(tokenizer)
    contexts, dropped = load_contexts(data, encoder, evaluation)
    print(f"contexts that share a run, dropped: {dict(dropped)}", flush=True)
    prose = Prose(data, evaluation, arguments.seed)
    writers = {kind: ShardWriter(out, kind, arguments.shard_tokens) for kind in ("prose", "held", "reading")}
    readings = Readings(contexts, encoder, arguments.seed, arguments.longest)
    write_readings(readings, writers["reading"], arguments.reading_tokens)
    kinds = dict(readings.tokens)
    print(f"readings: {kinds}", flush=True)
    counts = write_prose(prose, tokenizer, writers["prose"], writers["held"], arguments.prose_tokens)
    facts: dict[str, object] = {
        "tokenizer_sha256": hashlib.sha256(arguments.tokenizer.read_bytes()).hexdigest(), "seed": arguments.seed,
        "vocab": tokenizer.get_vocab_size(), "contexts": len(contexts), "longest": arguments.longest,
        "questions": sum(len(context.questions) for context in contexts), "reading_tokens_by_kind": kinds,
        "dropped": {"contexts": dict(dropped), "paragraphs": prose.dropped["paragraphs"]}, **counts,
    }  # fmt: skip
    write_manifest(out, writers.values(), facts)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path, default=Path("runs/packed"))
    parser.add_argument("--tokenizer", type=Path, default=Path("weights/fano-reader/tokenizer.json"))
    parser.add_argument("--prose-tokens", type=int, default=200_000_000, help="at most; the text given holds 105 M")
    parser.add_argument("--reading-tokens", type=int, default=60_000_000)
    parser.add_argument("--shard-tokens", type=int, default=8_000_000, help="about 12 to 16 MB a file")
    parser.add_argument("--longest", type=int, default=12_288, help="tokens of passages in the longest reading")
    parser.add_argument("--seed", type=int, default=0)
    for key, value in prepare(parser.parse_args()).items():
        print(f"{key}: {value}")


if __name__ == "__main__":
    main()
