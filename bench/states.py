"""Which state answers best, none or the memory of the document that is asked, and does it help to ask first?

Articles of SQuAD 1.1's development set, each with all its paragraphs joined into one document, are read by the server's
own reader; real questions about them are answered through the server's own answering path, in every form, one after the
other in an order that is drawn anew for each question:

    python -m bench.states --data DATA --articles 8 --questions 120

Values are percent with 95 % bootstrap intervals: exact match, F1, and value (a right answer stands in what was
answered). Differences are paired, against the first form. Training leaves these articles out.
"""

import argparse
import asyncio
import json
import platform
import random
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.passage import DocumentStatus
from server.answers.form import AnswerForm, AnswerStart, QuestionPlace
from server.answers.inquiry import AnswerDone, Inquiry, Sampling
from server.answers.prompt import Turn
from server.documents.uploads import Upload
from server.metrics import Metrics
from server.services import Services, load_services
from server.settings import Settings
from training.cases import Case, interval, scores
from training.corpus import data_directory, records

TENANT = "default"
SOURCE = "squad1.1-dev"
STARTS = (AnswerStart.FRESH, AnswerStart.DOCUMENT)
FORMS = tuple(AnswerForm(start, place) for start in STARTS for place in QuestionPlace)
MEASURES = ("exact match", "F1", "value")


@dataclass(frozen=True)
class Asked:
    """A question about one document, and the answers that count as right."""

    document: str
    case: Case


def articles(data: Path, num_articles: int, num_questions: int, seed: int) -> dict[str, tuple[str, list[Case]]]:
    """Title -> its paragraphs in the order of the set, joined, and a share of its questions."""
    rng = random.Random(seed)
    by_title: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records(data / "qa_eval.jsonl.xz"):
        if record["source"] == SOURCE:
            by_title[record["title"]].append(record)
    chosen = rng.sample(sorted(by_title), num_articles)
    share = -(-num_questions // num_articles)
    made = {}
    for title in chosen:
        rows = by_title[title]
        text = "\n\n".join(dict.fromkeys(row["context"] for row in rows))
        picked = rng.sample(rows, min(share, len(rows)))
        made[title] = text, [Case([row["context"]], row["question"], row["answers"]) for row in picked]
    return made


async def take_in(services: Services, directory: Path, title: str, text: str) -> str:
    """The document's id, once the model has read it."""
    path = directory / "upload.txt"
    path.write_text(text, encoding="utf-8")
    upload = Upload(f"{title}.txt", "text/plain", path, path.stat().st_size, text.encode()[:4096])
    document, _ = services.ingestor.accept(TENANT, upload, "text/plain", is_to_be_read=True)
    while (found := services.library.get(TENANT, document.id)).status is not DocumentStatus.READY:
        assert found.status is not DocumentStatus.FAILED, found.error
        await asyncio.sleep(0.1)
    assert found.progress.note is None, found.progress.note
    return document.id


async def answer(services: Services, asked: Asked, form: AnswerForm) -> AnswerDone:
    """The answer in one form, greedy, as `/v1/ask` gives it."""
    inquiry = Inquiry(
        request_id="states",
        tenant=TENANT,
        turns=(Turn("user", asked.case.question),),
        documents=(asked.document,),
        recall="grounded",
        sampling=Sampling(max_tokens=32),
        max_passages=5,
        started=time.monotonic(),
        form=form,
    )
    async with services.answering.answer(inquiry) as under_way:
        async for event in under_way.events():
            if isinstance(event, AnswerDone):
                assert event.usage is None or event.retrieval.start is form.start, event.retrieval
                return event
    raise AssertionError("an answer ends with AnswerDone")


async def measure(services: Services, asked: list[Asked], seed: int) -> dict[str, dict[str, Any]]:
    """Scores and seconds to the first token by form."""
    rng = random.Random(seed)
    rows: dict[AnswerForm, list[tuple[float, float, float]]] = defaultdict(list)
    seconds: dict[AnswerForm, list[float]] = defaultdict(list)
    for each in asked:
        for form in rng.sample(FORMS, len(FORMS)):
            done = await answer(services, each, form)
            rows[form].append(scores(done.text, each.case))
            if done.ttft_seconds is not None:
                seconds[form].append(done.ttft_seconds)
    first = np.array(rows[FORMS[0]], dtype=float)
    told = {}
    for form in FORMS:
        values = np.array(rows[form], dtype=float)
        told[f"{form.start.value} {form.place.value}"] = {
            "percent": {name: interval(values[:, place]) for place, name in enumerate(MEASURES)},
            "difference": {name: interval((values - first)[:, place]) for place, name in enumerate(MEASURES)},
            "first_token_seconds_median": round(statistics.median(seconds[form]), 4),
        }
    return told


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, in a data directory of its own."""
    made = articles(data_directory(arguments.data), arguments.articles, arguments.questions, arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        settings = Settings(data_dir=directory / "data", threads=arguments.threads, model=arguments.model)
        services = load_services(settings, Metrics())
        services.start()
        try:
            asked = []
            num_tokens = []
            for title, (text, cases) in made.items():
                document = await take_in(services, directory, title, text)
                num_tokens.append(services.library.get(TENANT, document).num_tokens or 0)
                asked += [Asked(document, replace(case)) for case in cases]
            forms = await measure(services, asked, arguments.seed)
        finally:
            await services.aclose()
        model = services.model.name
    return {
        "model": model,
        "articles": len(made),
        "questions": len(asked),
        "document_tokens": [min(num_tokens), max(num_tokens)],
        "seed": arguments.seed,
        "threads": arguments.threads,
        "machine": platform.processor() or platform.machine(),
        "torch": version("torch"),
        "forms": forms,
    }


def print_table(told: dict[str, Any]) -> None:
    """For people."""
    low, high = told["document_tokens"]
    print(f"{told['questions']} questions about {told['articles']} articles of {low:,} to {high:,} tokens\n")
    print("| start, question | exact match | F1 | value | paired F1 difference | first token, s |")
    print("|---|---|---|---|---|---|")
    for form, row in told["forms"].items():
        cells = [f"{mean} ({low} to {high})" for mean, low, high in row["percent"].values()]
        mean, low, high = row["difference"]["F1"]
        print(f"| {form} | {' | '.join(cells)} | {mean:+} ({low} to {high}) | {row['first_token_seconds_median']} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="directory of the training data [default: FANO_TRAINING_DATA]")
    parser.add_argument("--articles", type=int, default=8)
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--model", help="checkpoint directory [default: the embedded model]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    told = asyncio.run(run(parser.parse_args()))
    print_table(told)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
