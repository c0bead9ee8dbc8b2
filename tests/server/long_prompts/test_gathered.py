"""What was found in a prompt and in documents, as one list."""

from types import SimpleNamespace
from typing import Any

from retrieval.passage import Passage, SearchResult, Span
from retrieval.scope import Scope
from server.answers.document_search import Looked
from server.answers.gate import Reason
from server.long_prompts.gathered import Gathered

PROMPT: Any = SimpleNamespace(text_bytes=100, index_bytes=10)


def passage(name: str, score: float, is_led: bool = False) -> Passage:
    span = Span(0, 4)
    return Passage(name, name, span, "Text", None, score, ("lexical",), evidence=span if is_led else None)


def result(*passages: Passage, found: bool = True) -> SearchResult:
    return SearchResult(passages, found, "by words", len(passages), 3, {})


def looked(*found: Passage, given: tuple[Passage, ...] = ()) -> Looked:
    return Looked((), given, found, result(*found), Scope(), 7, 5, "Searched 3 passages of 'a.txt'.")


def names(gathered: Gathered) -> list[str]:
    return [each.document_id for each in gathered.passages]


def test_what_a_key_leads_to_comes_first_then_the_better() -> None:
    own = result(passage("messages.0", 0.9), passage("messages.1", 0.3, is_led=True))
    both = looked(passage("a", 0.95), passage("b", 0.2, is_led=True), passage("c", 0.5), given=(passage("f", 0.0),))
    gathered = Gathered.of(both, PROMPT, own, 4)
    assert names(gathered) == ["f", "messages.1", "b", "a", "messages.0"] and gathered.num_given == 1
    assert (gathered.text_bytes, gathered.index_bytes, gathered.num_facts) == (107, 15, 5)
    assert gathered.told == "Searched 3 passages of 'a.txt'. Searched 3 passages of the prompt."
    assert gathered.bill(None).reason is Reason.KEY_HIT


def test_what_is_not_found_in_one_of_them_is_left_out() -> None:
    gathered = Gathered.of(looked(passage("a", 0.1)), PROMPT, result(passage("messages.0", 0.9), found=False), 4)
    assert names(gathered) == ["a"] and gathered.bill(None).reason is Reason.LONG_PROMPT
    alone = Gathered.of(None, PROMPT, result(passage("messages.0", 0.9)), 4)
    assert names(alone) == ["messages.0"] and alone.num_given == 0 and alone.told.endswith("of the prompt.")
