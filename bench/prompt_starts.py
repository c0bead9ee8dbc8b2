"""From which state is a question about a long prompt answered best: none, or what was read of the prompt?

Paragraphs of SQuAD 1.1's development set (all of an article, article after article in an order that is drawn) are
pasted into one message up to a length, and real questions about them are asked through the server's own answering path,
each from both states in an order drawn anew:

    python -m bench.prompt_starts --data DATA --tokens 8000 32000 128000 --questions 120

Of each length and start: how often a passage with the answer's paragraph was the one that the model reads (*found*),
how often a right answer stands in what was answered (*value*) of all questions and of those whose passage was found,
F1, and seconds to the first token once the text was read before. Percent with 95 % bootstrap intervals; differences are
paired, against the fresh start. Training leaves these articles out.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.states import SOURCE, TENANT
from bench.throughput import describe_machine
from server.answers.form import AnswerForm, AnswerStart
from server.answers.inquiry import AnswerDone, Inquiry, Sampling
from server.answers.prompt import Turn
from server.metrics import Metrics
from server.services import Services, load_services
from server.settings import Settings
from training.cases import Case, interval, scores
from training.corpus import data_directory, records

STARTS = (AnswerStart.FRESH, AnswerStart.PROMPT)


@dataclass(frozen=True)
class Pasted:
    """A text and questions about it, each with its paragraph."""

    text: str
    cases: list[Case]


@dataclass
class Answered:
    """What came of the questions, by start."""

    found: list[bool] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    f1: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def pasted(data: Path, services: Services, num_tokens: int, num_questions: int, seed: int) -> list[Pasted]:
    """As many texts of about ``num_tokens`` as the questions need: 15 at most of one of 8,000 tokens."""
    dice = random.Random(seed)
    by_title: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records(data / "qa_eval.jsonl.xz"):
        if record["source"] == SOURCE:
            by_title[record["title"]].append(record)
    titles = dice.sample(sorted(by_title), len(by_title))
    share = max(1, min(num_questions, 15 * num_tokens // 8000))
    made: list[Pasted] = []
    while sum(len(each.cases) for each in made) < num_questions:
        paragraphs: dict[str, list[dict[str, Any]]] = defaultdict(list)
        length = 0
        while length < num_tokens and titles:
            for row in by_title[titles.pop()]:
                if row["context"] not in paragraphs:
                    length += len(services.tokenizer.encode_ids(row["context"]))
                if length < num_tokens:
                    paragraphs[row["context"]].append(row)
        rows = [row for each in paragraphs.values() for row in each]
        if not rows:
            raise SystemExit(f"the set has no text for another {num_tokens} tokens; ask fewer questions")
        chosen = dice.sample(rows, min(share, len(rows)))
        made.append(
            Pasted("\n\n".join(paragraphs), [Case([row["context"]], row["question"], row["answers"]) for row in chosen])
        )
    return made


async def answer(services: Services, asked: Inquiry) -> AnswerDone:
    """The answer, greedy, as `/v1/chat/completions` gives it."""
    async with services.answering.answer(asked) as under_way:
        async for event in under_way.events():
            if isinstance(event, AnswerDone):
                return event
    raise AssertionError("an answer ends with AnswerDone")


def asked(text: str, case: Case, start: AnswerStart) -> Inquiry:
    """A question after its text, to be answered from that start."""
    return Inquiry(
        request_id="starts",
        tenant=TENANT,
        turns=(Turn("user", f"{text}\n\n{case.question}"),),
        documents=(),
        recall="grounded",
        sampling=Sampling(max_tokens=32),
        max_passages=5,
        started=time.monotonic(),
        form=AnswerForm(prompt_start=start),
    )


async def is_found(services: Services, text: str, case: Case) -> bool:
    """Whether what the model reads, from either start, is of the question's paragraph and holds an answer."""
    ground = await services.answering.groundwork(asked(text, case, AnswerStart.FRESH), is_asked=False)
    place = text.index(case.passages[0])
    of_case = range(place, place + len(case.passages[0]))
    read = [source.passage for source in ground.readings]
    return any(passage.span.start in of_case and any(each in passage.text for each in case.answers) for passage in read)


async def measure(services: Services, texts: list[Pasted], seed: int) -> dict[AnswerStart, Answered]:
    """All questions from both starts; the first of a text, which reads it, is asked once more."""
    dice = random.Random(seed)
    told = {start: Answered() for start in STARTS}
    for each in texts:
        await answer(services, asked(each.text, each.cases[0], AnswerStart.PROMPT))
        for case in each.cases:
            found = await is_found(services, each.text, case)
            for start in dice.sample(STARTS, len(STARTS)):
                done = await answer(services, asked(each.text, case, start))
                _, f1, value = scores(done.text, case)
                row = told[start]
                row.found.append(found)
                row.value.append(value)
                row.f1.append(f1)
                if done.ttft_seconds is not None:
                    row.seconds.append(done.ttft_seconds)
    return told


def summed_up(told: dict[AnswerStart, Answered]) -> dict[str, Any]:
    """Figures by start."""
    first = told[AnswerStart.FRESH]
    rows: dict[str, Any] = {}
    for start, row in told.items():
        found = np.array(row.found, dtype=float)
        value, f1 = np.array(row.value, dtype=float), np.array(row.f1)
        rows[start.value] = {
            "questions": len(found),
            "found": interval(found),
            "value": interval(value),
            "value_if_found": interval(value[found > 0]) if found.any() else None,
            "f1": interval(f1),
            "f1_difference": interval(f1 - np.array(first.f1)),
            "first_token_seconds_median": round(statistics.median(row.seconds), 3) if row.seconds else None,
        }
    return rows


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every length, in a data directory of its own."""
    data = data_directory(options.data)
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        settings = Settings(
            data_dir=Path(place), threads=options.threads, model=options.model, max_whole_prompt_tokens=1 << 30
        )
        services = load_services(settings, Metrics())
        await services.start()
        try:
            for num_tokens in options.tokens:
                texts = pasted(data, services, num_tokens, options.questions, options.seed)
                told[str(num_tokens)] = summed_up(await measure(services, texts, options.seed))
                print_rows(num_tokens, told[str(num_tokens)])
        finally:
            await services.aclose()
        model = services.model.name
    return {"model": model, "seed": options.seed, "lengths": told} | describe_machine(options.threads)


def print_rows(num_tokens: int, rows: dict[str, Any]) -> None:
    """For people."""
    for start, row in rows.items():
        cells = [_shown(row[key]) for key in ("found", "value", "value_if_found", "f1", "f1_difference")]
        cells.append(str(row["first_token_seconds_median"]))
        print(f"| {num_tokens:,} | {start} | {row['questions']} | {' | '.join(cells)} |", flush=True)


def _shown(value: tuple[float, float, float] | None) -> str:
    return "" if value is None else f"{value[0]} ({value[1]} to {value[2]})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="directory of the training data [default: FANO_TRAINING_DATA]")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8_000, 32_000, 128_000])
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--model", help="checkpoint directory [default: the embedded model]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    print(
        "| tokens | start | questions | found | value | value if found | F1 | paired F1 difference | first token, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    print(json.dumps(asyncio.run(run(options))))


if __name__ == "__main__":
    main()
