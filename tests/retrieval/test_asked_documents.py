"""Which documents a question names, and that each of several asked has its share, however long another one is."""

import pytest

from retrieval.asked_documents import AskedDocuments, asked_documents, first_of, in_turn

TENANT = "acme"
NAMES = ["lease_north.pdf", "lease-south.pdf", "House Rules.md"]
TITLES = ["Lease of the northern quay", "", "Rules for A and B"]
LETTERS = ["A.txt", "B.txt", "document.txt"]


@pytest.mark.parametrize(
    ("question", "names", "named", "shares"),
    [
        ("What is the notice period in lease_north?", NAMES, {0}, {0}),
        ("What is the notice period of the North lease and the South lease?", NAMES, {0, 1}, {0, 1}),
        ("What does the lease of the northern quay say?", NAMES, {0}, {0}),
        ("Do the house rules say so?", NAMES, {2}, {2}),
        ("What is the notice period?", NAMES, set(), set()),
        ("What are the rules?", NAMES, set(), set()),
        ("Compare the notice periods.", NAMES, set(), {0, 1, 2}),
        ("What is different in North?", NAMES, {0}, {0, 1, 2}),
        ("Compare north with south.", NAMES, {0, 1}, {0, 1}),
        ("What notice do both leases give?", NAMES, set(), {0, 1, 2}),
        ("Who won both races?", NAMES, set(), set()),
        ("Compare the notice period in A and B.", LETTERS, {0, 1}, {0, 1}),
        ("Is there a rule about a boat?", LETTERS, set(), set()),
        ("Does a.txt name a boat?", LETTERS, {0}, {0}),
        ("What does the document say?", LETTERS, set(), set()),
        ("Compare lease_north with itself.", ["lease_north.pdf"], set(), set()),
    ],
)
def test_documents_are_named_by_what_tells_them_apart(question, names, named, shares):
    titles = TITLES if names is NAMES else [""] * len(names)
    assert asked_documents(question, names, titles) == AskedDocuments(frozenset(named), frozenset(shares))


def test_places_of_each_document_by_hand():
    found = [(0, n) for n in range(8)] + [(1, 0), (2, 0), (1, 1), (1, 2)]
    asked = AskedDocuments(shares=frozenset({0, 1}))
    assert first_of(found, 4, asked, lambda one: one[0]) == [*found[:4], (1, 0), (1, 1)]
    assert first_of(found, 4, AskedDocuments(), lambda one: one[0]) == found[:4]
    turns = in_turn(found, 2, {1, 0}, lambda one: one[0])
    assert turns == [(0, 0), (1, 0), (0, 1), (1, 1), *found[2:8], (2, 0), (1, 2)]
    assert in_turn(found, 0, (), lambda one: one[0]) == found
    assert [AskedDocuments(shares=frozenset(range(n))).most(5) for n in (0, 1, 2, 3, 9)] == [0, 3, 2, 1, 1]


@pytest.mark.parametrize("learned", [True, False])
def test_a_long_document_does_not_crowd_out_the_others(open_library, add_text, learned):
    library = open_library()
    library._search._is_learned = learned
    long = "\n\n".join(
        f"The ferry leaves pier {n} at noon, as the ferry does, says the ferry man. " * 5 for n in range(80)
    )
    other = "They spoke of the weather, of roads and of what was to be had in town. " * 9
    short = [
        f"{other}\n\nA ferry leaves the {name} at {hour} in the morning.\n\n{other}"
        for name, hour in (("mole", 7), ("dock", 9))
    ]
    documents = [
        add_text(library, text, name).id
        for text, name in zip([long, *short], ["a.txt", "mole.txt", "dock.txt"], strict=True)
    ]
    ask = "When does the ferry leave?"
    by_rank = library.search(TENANT, ask, documents)
    assert {passage.document_name for passage in by_rank.passages} == {"a.txt"} and "share" not in by_rank.reason
    compared = library.search(TENANT, f"{ask} Compare all three documents.", documents)
    assert {passage.document_name for passage in compared.passages[:3]} == {"a.txt", "mole.txt", "dock.txt"}
    assert "at 7 in the" in " ".join(passage.text for passage in compared.passages)
    assert "at 9 in the" in " ".join(passage.text for passage in compared.passages)
    assert len(compared.passages) == 5 and compared.reason.endswith("each of the 3 documents asked has its share")
    named = library.search(TENANT, "When does the ferry leave by mole.txt?", documents)
    assert "at 7 in the" in named.passages[0].text and named.passages[0].is_named
    assert [passage.is_named for passage in named.passages] == [p.document_name == "mole.txt" for p in named.passages]
    assert named.reason.endswith("; the document that the question names comes first")
    more = [short[0].replace("at 7", f"at 1{n}") for n in range(7)]
    ten = [*documents, *(add_text(library, text, f"quay{n}.txt").id for n, text in enumerate(more))]
    some = library.search(TENANT, f"{ask} Compare all documents.", ten)
    assert len({passage.document_id for passage in some.passages}) == 5


def test_a_phrase_that_stands_in_many_documents_is_a_key_in_each(open_library, add_text):
    library = open_library()
    library._search._is_learned = True
    other = "They spoke of the weather, of roads and of what was to be had in town. " * 9
    talk = "\n\n".join(f"The notice period was spoken of again in week {week}. {other}" for week in range(30))
    leases = [f"{other}\n\nNotice period: {weeks} weeks\n\n{other}" for weeks in range(4, 9)]
    documents = [add_text(library, text, f"lease{n}.txt").id for n, text in enumerate([*leases, talk])]
    ask = "What is said of the notice period by the owners?"
    assert not any("key" in passage.found_by for passage in library.search(TENANT, ask, documents).passages)
    compared = library.search(TENANT, f"{ask} Compare all documents.", documents, 6).passages
    by_key = {passage.document_id for passage in compared if "key" in passage.found_by}
    assert by_key == set(documents[:5]) and {passage.document_id for passage in compared} == set(documents)


def test_each_search_looks_into_each_document_that_has_a_share(open_library, add_text):
    library = open_library()
    library._search._is_learned = True
    loud = "\n\n".join(
        "The ferry leaves, the ferry comes, the ferry man says ferry, " * 6 + "ferry." for _ in range(99)
    )
    quiet = "They spoke of the weather, and of roads, and of a ferry or a cart that was to be had in town. " * 5
    records = [
        library._store.record(add_text(library, text, name).id)
        for text, name in ((loud, "loud.txt"), (quiet, "quiet.txt"))
    ]
    by_rank = library._search.rank("ferry", records)
    assert {place[0] for place in (*by_rank.lexical, *by_rank.dense, *by_rank.scores)} == {0}
    compared = library._search.rank("ferry, compared", records)
    for places in (compared.lexical, compared.dense, compared.scores):
        assert {place[0] for place in places} == {0, 1}
