"""Needles in a book, end to end over HTTP: is the evidence found, is every quote true, is the value right?

Twenty sentences that are not in the book are planted at depths 0 to 100 %, the book is posted to a running
server, and each is asked for in other words. Reported, with the model's answers in both recall modes beside
a baseline that needs no model (the sentence of the passages nearest to the question):

    fano serve &
    python -m bench.needles --book BOOK.txt --url http://127.0.0.1:8000

The needles are fixed and nothing in the product is tuned on them.
"""

import argparse
import json
import platform
import random
import re
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from retrieval.embedder import MiniLMEmbedder
from retrieval.sentences import sentence_spans


@dataclass(frozen=True)
class Needle:
    """A planted sentence, a question that shares few words with it, and the value a right answer holds."""

    sentence: str
    question: str
    value: str


NEEDLES = (
    Needle("The night porter keeps the spare cellar key inside a hollow globe.",
           "Where does the doorman hide the extra key to the basement?", "hollow globe"),
    Needle("Margarethe Oldenkamp was paid 4,300 guilders for repairing the observatory roof.",
           "How much money did Oldenkamp receive for mending the top of the observatory?", "4,300 guilders"),
    Needle("The ferry to Skarvholm leaves only on the second Tuesday of each month.",
           "On which day can one take the boat to Skarvholm?", "second Tuesday"),
    Needle("Doctor Ilse Brandt found that a tincture of juniper cured the horses' cough.",
           "Which remedy made the animals stop coughing, according to Brandt?", "tincture of juniper"),
    Needle("The cook at the Lantern Inn seasons her famous stew with dried lavender.",
           "What herb goes into the well-known dish of the Lantern Inn?", "dried lavender"),
    Needle("Parcel number QX-7741-B was delivered to the lighthouse by mistake.",
           "To what place was QX-7741-B wrongly brought?", "the lighthouse"),
    Needle("The choir of Saint Bevan rehearses in an abandoned tram depot.",
           "In what building do the singers of Saint Bevan practise?", "tram depot"),
    Needle("A beekeeper named Tobias Wrenfield invented the folding snow ladder.",
           "Who came up with the collapsible ladder for snow?", "Tobias Wrenfield"),
    Needle("The vault of the Merchants' Hall opens when the bell strikes eleven.",
           "At what hour can the strongroom of the Merchants' Hall be unlocked?", "eleven"),
    Needle("The treaty of Ullapar was written on the back of a theatre poster.",
           "What was the agreement of Ullapar set down upon?", "theatre poster"),
    Needle("Captain Rosalind Achterberg lost her left glove during the siege of Torvane.",
           "Which piece of clothing went missing from Achterberg at Torvane?", "left glove"),
    Needle("The oldest pear tree in Vellmark bears fruit the colour of copper.",
           "What hue do the pears of the most ancient tree in Vellmark have?", "copper"),
    Needle("The clockmaker's apprentice earns seventeen shillings a week.",
           "What are the weekly wages of the young man learning to make clocks?", "seventeen shillings"),
    Needle("The password of the gardeners' guild is amber thistle.",
           "Which secret word admits one to the society of gardeners?", "amber thistle"),
    Needle("The library of Quennel burned down on 14 March 1802.",
           "When was the Quennel book collection destroyed by fire?", "14 March 1802"),
    Needle("The bridge at Hask was built by prisoners from the salt mines.",
           "Which people constructed the crossing at Hask?", "prisoners from the salt mines"),
    Needle("Old Perrin's parrot can recite the multiplication table up to nineteen.",
           "How far does the bird of Perrin know its sums by heart?", "nineteen"),
    Needle("The miller of Dunmarrow is allergic to strawberries.",
           "Which food makes the miller of Dunmarrow ill?", "strawberries"),
    Needle("The glass harmonica was stored in crate forty-two beneath the stage.",
           "Which box holds the glass instrument under the theatre floor?", "forty-two"),
    Needle("The surveyor measured the frozen lake at three miles and two furlongs across.",
           "How wide did the land measurer find the icy lake to be?", "three miles and two furlongs"),
)  # fmt: skip


def plant(book: str, needles: tuple[Needle, ...], seed: int) -> str:
    """The book with one needle at each of len(needles) evenly spaced depths, between two sentences."""
    order = list(needles)
    random.Random(seed).shuffle(order)
    borders = [0, *(match.end() for match in re.finditer(r"[.!?][\"”']?\s+(?=[A-Z“\"])", book)), len(book)]
    pieces, last = [], 0
    for index, needle in enumerate(order):
        place = borders[round(index / (len(order) - 1) * (len(borders) - 1))]
        pieces += [book[last:place], needle.sentence if place == len(book) else needle.sentence + " "]
        last = place
    return "".join([*pieces, book[last:]])


def wait_for(client: httpx.Client, document_id: str, key: str, timeout_seconds: float) -> tuple[float, list[str]]:
    """Seconds until ``answerable`` or ``ready`` holds, and the stages seen on the way."""
    started, stages = time.monotonic(), []
    while time.monotonic() - started < timeout_seconds:
        document = client.get(f"/v1/documents/{document_id}").raise_for_status().json()
        stage = f"{document['status']}/{document['progress']['stage']}"
        stages += [stage] if stage not in stages else []
        if document["status"] == "failed":
            raise SystemExit(f"the document failed: {document['error']}")
        if document["answerable"] if key == "answerable" else document["status"] == "ready":
            return time.monotonic() - started, stages
        time.sleep(0.25)
    raise SystemExit(f"not {key} after {timeout_seconds} s; stages seen: {stages}")


def nearest_sentence(embedder: MiniLMEmbedder, question: str, sources: list[dict[str, Any]]) -> str:
    """The baseline: the sentence of the passages nearest to the question, no model."""
    sentences = [s["text"][span.start : span.end] for s in sources for span in sentence_spans(s["text"])]
    if not sentences:
        return ""
    scores = embedder.embed_passages(sentences) @ embedder.embed_query(question)
    return sentences[int(scores.argmax())]


def holds(answer: str, value: str) -> bool:
    """Whether the value stands in the answer, case and spacing aside."""
    return " ".join(value.lower().split()) in " ".join(answer.lower().split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--book", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--characters", type=int, default=1_200_000)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()

    book = arguments.book.read_text(encoding="utf-8")[: arguments.characters]
    text = plant(book, NEEDLES, arguments.seed)
    client = httpx.Client(base_url=arguments.url, timeout=600)
    started = time.monotonic()
    response = client.post("/v1/documents", files={"file": ("book.txt", text.encode(), "text/plain")})
    accepted_seconds = time.monotonic() - started
    document_id = response.raise_for_status().json()["id"]
    answerable_seconds, _ = wait_for(client, document_id, "answerable", 120)
    ready_seconds, stages = wait_for(client, document_id, "ready", 1800)

    embedder = MiniLMEmbedder()
    rows, quotes_checked, quotes_wrong = [], 0, 0
    for needle in NEEDLES:
        row: dict[str, Any] = {"question": needle.question, "value": needle.value}
        for recall in ("verbatim", "grounded"):
            body = {"question": needle.question, "recall": recall, "max_tokens": 48}
            started = time.monotonic()
            reply = client.post(f"/v1/documents/{document_id}/ask", json=body).raise_for_status().json()
            row[recall] = reply["answer"]
            row[f"{recall}_seconds"] = round(time.monotonic() - started, 2)
            row[f"{recall}_right"] = holds(reply["answer"], needle.value)
            for piece in [*reply["sources"], *reply["citations"]]:
                span = {"start": piece["start"], "end": piece["end"]}
                stored = client.get(f"/v1/documents/{document_id}/text", params=span).raise_for_status().json()["text"]
                quote = piece["quote"] if "quote" in piece else piece["text"]
                quotes_checked += 1
                quotes_wrong += not (stored == quote == text[span["start"] : span["end"]])
        row["found"] = any(needle.sentence in source["text"] for source in reply["sources"])
        row["baseline"] = nearest_sentence(embedder, needle.question, reply["sources"])
        row["baseline_right"] = holds(row["baseline"], needle.value)
        rows.append(row)
        print(f"{'found ' if row['found'] else 'MISSED'} {needle.question}\n       verbatim {row['verbatim']!r}"
              f"\n       grounded {row['grounded']!r}\n       baseline {row['baseline']!r}")  # fmt: skip

    result = {
        "bench": "needles",
        "characters": len(text),
        "seed": arguments.seed,
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "accepted_seconds": round(accepted_seconds, 2),
        "answerable_seconds": round(answerable_seconds, 1),
        "ready_seconds": round(ready_seconds, 1),
        "stages": stages,
        "num_needles": len(rows),
        "num_found": sum(row["found"] for row in rows),
        "num_quotes_checked": quotes_checked,
        "num_quotes_wrong": quotes_wrong,
        "num_verbatim_right": sum(row["verbatim_right"] for row in rows),
        "num_grounded_right": sum(row["grounded_right"] for row in rows),
        "num_baseline_right": sum(row["baseline_right"] for row in rows),
    }
    print(json.dumps(result))
    sys.exit(quotes_wrong > 0)


if __name__ == "__main__":
    main()
