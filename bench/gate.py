"""What the gate's rules do: small talk skipped, follow-ups known as such, unrelated questions left as they are.

Unrelated questions are people's, each put after another question and its answer. Follow-ups are made of people's
questions as well: the name that two questions over one paragraph share becomes a pronoun, where it is a subject, an
object or an owner. Small talk and turns about the conversation are written down here. No model is asked.

With ``--books`` the model is: how certain it is of an answer without documents, where the words say nothing. Turns that
need documents are those of people's questions of which the words say nothing, and such questions without the word that
asks, as they are typed into a search box. Turns that need none are what people in novels say. Certainty is of use if it
is higher for these: the table says what each threshold would spare, and lose.

    python -m bench.gate --questions QA.jsonl.xz [--number 3000] [--source squad1.1-dev] [--show 20] [--books BOOKS]
"""

import argparse
import asyncio
import json
import lzma
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.recall.intervals import wilson
from model.config import EngineConfig
from model.engine.loader import load_engine
from server.answers.doubt import Doubt
from server.answers.follow_up import entities, follows, standalone_query
from server.answers.gate import Reason, decide
from server.answers.inquiry import Inquiry, Sampling
from server.answers.prompt import Turn
from server.engine_thread.bridge import EngineThread
from server.services import embedded_checkpoint

SMALL_TALK = """thanks|Thank you very much!|ok|Okay, great.|hello|Hi there!|Good morning|bye|Cool, thanks a lot!|
Perfect.|Sure|yes|no|No thanks.|Got it, thanks!|Nice|Awesome, thank you so much|Understood.|Haha ok|That's great|
That was very helpful, thanks|Well done!|You're welcome|See you later|Sorry|I see|Alright then|Much appreciated|
Wow, amazing|Good night!"""
ABOUT_SAID = """Shorten that.|Can you repeat your last answer?|What did I ask you before?|Please rephrase that|
Say it in one sentence.|Translate that into German.|Could you summarize your answer?|Go on|Continue.|
Make it shorter please|Put that in a table|Rewrite your answer as a list|Can you simplify this?|
Explain it like I'm five|What was my first question?|Why did you say that?|Are you sure?|Format that as JSON"""
ASKING = re.compile(
    r"^\W*(?:(?:in|at|to|for|by|on|from) )?"
    r"(?:who|whom|whose|what|which|when|where|why|how(?: many| much| long| old)?)\b\s*"
    r"(?:(?:is|are|was|were|do|does|did|has|have|had|can)\b)?\s*",
    re.IGNORECASE,
)
SPOKEN = re.compile(r"[“\"]([A-Z][^“”\"\n]{8,90}[.!,])[”\"]")
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
DOCUMENT = """What does the contract say about it?|Is that in section 4?|What is the number of the policy?|
thanks, and what is the deadline?|ok, who signed it?|Hello, when does the vault open?|Who wrote this report?"""


def rows_of(path: Path, source: str | None = None) -> list[dict[str, Any]]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [row for row in map(json.loads, lines) if source in (None, row["source"]) and row["answers"]]


def after(before: dict[str, Any], said: str) -> list[Turn]:
    """``said`` after a question and its answer."""
    return [Turn("user", before["question"]), Turn("assistant", before["answers"][0]), Turn("user", said)]


def made_follow_ups(rows: list[dict[str, Any]], rng: random.Random) -> list[tuple[list[Turn], str]]:
    """Conversations whose last question has a pronoun for the one name it shares with the question before; the name."""
    by_context: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_context[row["context"]].append(row)
    made = []
    for asked in by_context.values():
        for before, row in pairwise(asked):
            shared = [name for name in entities(row["question"]) if name in entities(before["question"])]
            if len(shared) != 1 or len(entities(row["question"])) != 1:
                continue
            subject, owner, thing = rng.choice([("it", "its", "it"), ("he", "his", "him"), ("they", "their", "them")])
            name = rf"(?:\bthe )?{re.escape(shared[0])}"
            said = re.sub(rf"{name}['’]s?(?= )", owner, row["question"], count=1)
            said = re.sub(
                rf"\b(did|does|is|was|were|had|has|can|are) {name}(?= [a-z])", rf"\1 {subject}", said, count=1
            )
            said = re.sub(rf"(?<= ){name}(?=\W*$)", thing, said, count=1)
            if shared[0] in said:
                continue  # beside another noun no pronoun takes its place
            made.append((after(before, said), shared[0]))
    return made


def rate(name: str, count: int, total: int) -> None:
    low, high = wilson(count, total)
    share = 100 * count / max(total, 1)
    print(f"{name:58} {count:5} of {total:5}  {share:5.1f} % ({100 * low:.1f} to {100 * high:.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--source", default="squad1.1-dev")
    parser.add_argument("--number", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument(
        "--show", type=int, default=0, help="so many unrelated questions that were taken for follow-ups"
    )
    parser.add_argument("--books", type=Path, help="JSON lines with a text each, for what people say to each other")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    rows = rows_of(arguments.questions, arguments.source)
    measure(rows, arguments.number, arguments.show, rng)
    if arguments.books is not None:
        asyncio.run(measure_doubt(rows, rows_of(arguments.questions), arguments.books, arguments.number, rng))


def measure(rows: list[dict[str, Any]], number: int, show: int, rng: random.Random) -> None:
    """Every rate with its 95 % interval."""
    before = {"question": "Who keeps the key of the vault?", "answers": ["The porter keeps it in a globe."]}
    for name, listed, wanted in (
        ("small talk that is skipped", SMALL_TALK, False),
        ("turns about the conversation that are skipped", ABOUT_SAID, False),
        ("short turns that ask the document and are searched for", DOCUMENT, True),
    ):
        said = [turn.strip() for turn in listed.replace("\n", "").split("|")]
        right = [turn for turn in said if decide(after(before, turn)).is_searched is wanted]
        rate(name, len(right), len(said))
        print("   not:", "; ".join(turn for turn in said if turn not in right) or "none")
    chosen = rng.sample(rows, min(number, len(rows)))
    others = rng.sample(rows, len(chosen))
    begun = time.perf_counter()
    decisions = [decide(after(other, row["question"])) for other, row in zip(others, chosen, strict=True)]
    seconds = time.perf_counter() - begun
    rate("unrelated questions left without a search", sum(not each.is_searched for each in decisions), len(chosen))
    eager = [
        row["question"]
        for other, row in zip(others, chosen, strict=True)
        if follows(after(other, row["question"])) and other["title"] != row["title"]
    ]
    rate("unrelated questions taken for follow-ups", len(eager), len(chosen))
    for question in eager[:show]:
        print("   ", question)
    made = made_follow_ups(rows, rng)
    made = rng.sample(made, min(number, len(made)))
    missed = [turns[-1].content for turns, name in made if name not in standalone_query(turns)]
    rate("made follow-ups that get the name they lack", len(made) - len(missed), len(made))
    for question in missed[:show]:
        print("   ", question)
    print(f"{1000 * seconds / max(len(chosen), 1):.2f} ms a decision")


def unclear(before: Sequence[dict[str, Any]], said: Sequence[str], rng: random.Random) -> list[list[Turn]]:
    """Those of the turns, each after another question and its answer, of which the words say nothing."""
    conversations = [after(rng.choice(before), each) for each in said]
    return [turns for turns in conversations if decide(turns).reason is Reason.UNCLEAR]


def spoken(books: Path) -> Iterator[str]:
    with lzma.open(books, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            yield from (said.rstrip(",") for said in SPOKEN.findall(row["text"]))


async def measure_doubt(
    before: list[dict[str, Any]], rows: list[dict[str, Any]], books: Path, number: int, rng: random.Random
) -> None:
    """How certain the embedded model is of turns that need documents, and of those that need none."""
    asked = [row["question"] for row in rows]
    people = unclear(before, asked, rng)
    rate("people's questions of which the words say nothing", len(people), len(asked))
    bare = [ASKING.sub("", question).rstrip("? ") for question in rng.sample(asked, min(4 * number, len(asked)))]
    said = list(spoken(books))
    groups = {
        "people's questions": people,
        "questions without the word that asks": unclear(before, [each for each in bare if len(each) > 8], rng),
        "what people say in books": unclear(before, rng.sample(said, min(2 * number, len(said))), rng),
    }
    engine, _ = load_engine(embedded_checkpoint(), EngineConfig(num_slots=2, max_context_tokens=4096))
    bridge = EngineThread(engine)
    bridge.start()
    doubt = Doubt(bridge, engine.tokenizer)
    certain: dict[str, list[float]] = {}
    for name, turns in groups.items():
        chosen = rng.sample(turns, min(number, len(turns)))
        begun = time.perf_counter()
        found = [await doubt.certainty(in_doubt(each)) for each in chosen]
        seconds = time.perf_counter() - begun
        certain[name] = [each for each in found if each is not None]
        told = (
            f"{len(certain[name])} of {len(chosen)} were answered, {1000 * seconds / max(len(chosen), 1):.1f} ms each"
        )
        print(f"{name}: {told}")
    bridge.stop()
    *needing, last = certain
    for name in needing:
        print(f"area under the curve, {last} above {name}: {area(certain[last], certain[name]):.3f} (0.5 is chance)")
    for threshold in THRESHOLDS:
        for name in certain:
            skipped = sum(each >= threshold for each in certain[name])
            rate(f"certainty {threshold}: not searched, {name}", skipped, len(certain[name]))


def in_doubt(turns: list[Turn]) -> Inquiry:
    return Inquiry("bench", "default", tuple(turns), (), "free", Sampling(), 5, 0.0)


def area(above: Sequence[float], below: Sequence[float]) -> float:
    """The share of pairs of which the first is the greater, a tie being half of one."""
    wins = sum((high > low) + (high == low) / 2 for high in above for low in below)
    return wins / max(len(above) * len(below), 1)


if __name__ == "__main__":
    main()
