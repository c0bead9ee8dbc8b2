"""The second hop: what exact keys lead to is looked up, and nothing changes where no statement leads on."""

import random
from itertools import pairwise

import pytest

from retrieval.hops import MAX_HOPS, Trail

TENANT = "acme"
FILLER = "The committee met again and spoke of other matters at some length, without coming to any result at all. " * 20


def paragraphs(*texts: str) -> str:
    return f"\n\n{FILLER}\n\n".join(["", *texts, ""])


def ask(library, question, document, max_passages=8):
    return library.search(TENANT, question, [document.id], max_passages).passages


def test_a_value_handed_on_is_followed_to_every_variable(library, add_text):
    names = ["RTQXA", "KLMPO", "ZZQWE", "BNMVC", "PLOKI"]
    lines = [f"VAR {names[0]} = 48213."]
    lines += [f"VAR {name} = VAR {before}." for before, name in pairwise(names)]
    others = ["VAR QQQRS = 77123.", "VAR TTTUV = VAR QQQRS."]
    document = add_text(library, paragraphs(*lines[:3], *others, *lines[3:]))
    found = ask(library, "Find all variables that are assigned the value 48213 in the text above.", document)
    assert [next(line for line in lines if line in passage.text) for passage in found[:5]] == lines
    assert found[0].found_by[0] == "key"
    assert all("hop" in passage.found_by for passage in found[1:5])
    assert not any("hop" in passage.found_by for passage in found[5:])
    scores = [passage.score for passage in found]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    "link",
    [
        "Seal QX-7741 is stored under BX-9012.",
        "Seal QX-7741 was superseded by the entry BX-9012 long ago.",
        "For seal QX-7741 -> BX-9012.",
        "The alias BX-9012 refers to QX-7741.",
    ],
)
def test_a_key_given_as_the_value_of_another_is_looked_up_in_any_writing(library, add_text, link):
    document = add_text(library, paragraphs(link, "The box BX9012 stands in the east cellar.", "Box BX-9013 is red."))
    first, second = ask(library, "Where is the seal qx7741?", document)[:2]
    assert link in first.text
    assert "The box BX9012" in second.text
    assert "hop" in second.found_by


def test_hops_end(library, add_text):
    keys = [f"KX-{number}" for number in range(4000, 4000 + MAX_HOPS + 4)]
    lines = [f"Record {one} points to {two}." for one, two in pairwise(keys)]
    document = add_text(library, paragraphs(*lines, f"Record {keys[-1]} points to {keys[0]}."))
    by_hop = [p for p in ask(library, "What is in KX-4000?", document, 20) if "hop" in p.found_by]
    # Both ways round the ring, as far as hops go; the two records that name the key lead.
    assert len(by_hop) == len(keys) - 2
    line = add_text(library, paragraphs(*lines), "line.txt")
    by_hop = [p for p in ask(library, "What is in KX-4000?", line, 20) if "hop" in p.found_by]
    assert len(by_hop) == MAX_HOPS


@pytest.mark.parametrize("seed", range(4))
def test_where_nothing_leads_on_the_passages_are_the_same(library, add_text, monkeypatch, seed):
    draw = random.Random(seed)
    code = iter(draw.sample(range(1000, 9999), 60))
    lines, others = [], []
    for _ in range(12):
        one, two = f"KX-{next(code)}", f"BX-{next(code)}"
        beside = (f"Order {one} was shipped with {two}.", f"Valves {one} and {two} were tested by Mrs Ellery.")
        alone = (f"{one}: {two}", f"Seal {one} is stored under {two}.", f"Seal {one} is red since 3 May 2021.")
        lines.append(draw.choice((*beside, *alone)))
        # What merely stands beside a key is elsewhere, too; what a key leads to is nowhere else.
        if lines[-1] in beside:
            others.append(f"Crate {two} was painted green.")
    document = add_text(library, paragraphs(*lines, *others))
    questions = [f"What about KX-{line.split('KX-')[1][:4]}?" for line in lines]
    with_hops = [ask(library, question, document) for question in questions]
    monkeypatch.setattr(Trail, "follow", lambda *_: ())
    assert with_hops == [ask(library, question, document) for question in questions]
    assert all(any("key" in passage.found_by for passage in found) for found in with_hops)
