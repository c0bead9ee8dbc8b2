"""Rare words of a question: each is shown where it stands, whatever else ranks above it."""

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from retrieval.lexical_index import LexicalQuery, search_lexical
from retrieval.rare_words import MAX_PLACES, only_places, rare_places, spread
from retrieval.tantivy_index import TantivyIndex

PLACES = st.tuples(st.integers(0, 2), st.integers(0, 30))
SCORES = st.dictionaries(PLACES, st.floats(0, 1), min_size=1, max_size=25)


def test_places_of_words_that_stand_in_few_chunks():
    texts = ["Fenwick sold a mill."] + ["The miller sold flour."] * MAX_PLACES + ["A mill, flour and a lamp."] * 6
    index = TantivyIndex.build(None, [(text, "") for text in texts], 1000)
    question = LexicalQuery.of("Did Fenwick the miller sell flour to Dunmarrow?")
    found = rare_places(partial(search_lexical, [index]), search_lexical([index], question, 10))
    assert found == {"fenwick": [(0, 0)], "miller": [(0, 1), (0, 2), (0, 3)]}
    assert only_places({"fenwick", "miller", "dunmarrow"}, found) == [(0, 0)]


def test_every_place_of_a_joined_name_counts_up_to_five():
    texts = ["The blue-heron pump is on.", "A blue heron sang.", *["The blue-heron pump is off."] * 4, *["Pump."] * 9]
    index = TantivyIndex.build(None, [(text, "") for text in texts], 1000)
    found = rare_places(
        partial(search_lexical, [index]), search_lexical([index], LexicalQuery.of("Where is blue-heron?"), 10)
    )
    assert found == {"blue-heron": [(0, 0), (0, 2), (0, 3), (0, 4), (0, 5)]}
    scores = {(0, ordinal): ordinal / 100 for ordinal in range(15)}
    assert {(0, 0), (0, 2), (0, 3), (0, 4)} < set(list(spread(scores, found, 5))[:5])


@st.composite
def ranked(draw):
    scores = draw(SCORES)
    stems = st.text("ab-", min_size=1, max_size=3)
    rare = draw(st.dictionaries(stems, st.lists(st.sampled_from(sorted(scores)), min_size=1, max_size=3), max_size=6))
    return scores, rare, draw(st.integers(1, 6))


@given(ranked())
def test_every_rare_word_has_a_place_among_the_first(given_):
    scores, rare, num_first = given_
    order = sorted(scores, key=lambda place: (-scores[place], place))
    made = spread(scores, rare, num_first)
    now = sorted(made, key=lambda place: (-made[place], list(made).index(place)))
    assert sorted(made.values()) == sorted(scores.values()) and made.keys() == scores.keys()
    assert next(iter(made)) == order[0]
    # One place of a word is enough, but every one of a name that is joined by a sign is wanted.
    wanted = [group for stem, places in rare.items() for group in ([[p] for p in places] if "-" in stem else [places])]
    covered = [not set(places).isdisjoint(now[:num_first]) for places in wanted]
    before = [not set(places).isdisjoint(order[:num_first]) for places in wanted]
    assert all(after or not was for was, after in zip(before, covered, strict=True))
    if len(wanted) < num_first:
        assert all(covered)
    if all(before):
        assert now == order
