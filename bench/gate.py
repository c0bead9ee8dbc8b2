"""What the gate's rules do: small talk skipped, follow-ups known as such, unrelated questions left as they are.

Unrelated questions are people's, each put after another question and its answer. Follow-ups are made of people's
questions as well: the name that two questions over one paragraph share becomes a pronoun, where it is a subject, an
object or an owner. Small talk and turns about the conversation are written down here. No model is asked.

    python -m bench.gate --questions QA.jsonl.xz [--number 3000] [--source squad1.1-dev] [--show 20]
"""

import argparse
import json
import lzma
import random
import re
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.recall.intervals import wilson
from server.follow_up import entities, follows, standalone_query
from server.gate import decide
from server.prompt import Turn

SMALL_TALK = """thanks|Thank you very much!|ok|Okay, great.|hello|Hi there!|Good morning|bye|Cool, thanks a lot!|
Perfect.|Sure|yes|no|No thanks.|Got it, thanks!|Nice|Awesome, thank you so much|Understood.|Haha ok|That's great|
That was very helpful, thanks|Well done!|You're welcome|See you later|Sorry|I see|Alright then|Much appreciated|
Wow, amazing|Good night!"""
ABOUT_SAID = """Shorten that.|Can you repeat your last answer?|What did I ask you before?|Please rephrase that|
Say it in one sentence.|Translate that into German.|Could you summarize your answer?|Go on|Continue.|
Make it shorter please|Put that in a table|Rewrite your answer as a list|Can you simplify this?|
Explain it like I'm five|What was my first question?|Why did you say that?|Are you sure?|Format that as JSON"""
DOCUMENT = """What does the contract say about it?|Is that in section 4?|What is the number of the policy?|
thanks, and what is the deadline?|ok, who signed it?|Hello, when does the vault open?|Who wrote this report?"""


def rows_of(path: Path, source: str) -> list[dict[str, Any]]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [row for row in map(json.loads, lines) if row["source"] == source and row["answers"]]


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
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    rows = rows_of(arguments.questions, arguments.source)
    measure(rows, arguments.number, arguments.show, rng)


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


if __name__ == "__main__":
    main()
