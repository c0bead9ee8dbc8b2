"""Facts found by former recognisers are found anew in the documents that are stored."""

import sqlite3

from retrieval.embedder import HashEmbedder
from retrieval.limits import Limits
from retrieval.passage import DocumentStatus, FactKind, Span
from retrieval.recognisers import RECOGNISERS_REVISION
from retrieval.surprises import Surprise, Surprises

TENANT = "acme"
TEXT = "The invoice INV-2024-000123 costs $1,234.50. It is due on 5 March 2024. The valve is an oddity of brass."


def facts(library, document):
    return {(fact.kind, TEXT[fact.span.start : fact.span.end]) for fact in library.facts(TENANT, document.id)}


def change(data_dir, statement):
    connection = sqlite3.connect(data_dir / "store.sqlite3")
    with connection:
        connection.execute(statement)
    connection.close()


def test_a_stored_document_gets_the_facts_of_the_present_recognisers(open_library, add_text, data_dir):
    library = open_library()
    document = add_text(library, TEXT)
    found = facts(library, document)
    assert (FactKind.IDENTIFIER, "INV-2024-000123") in found
    library.pin(TENANT, document.id, Span(0, 11), "what")
    Surprises(library._store, 100).tell(document.id, 0, 9, [Surprise(Span(86, 92), 7.0)])
    told = facts(library, document)
    assert len(told) == len(found) + 2
    record = library._store.record(document.id)
    assert record.recognisers == RECOGNISERS_REVISION
    library.close()

    # As former recognisers would have left it: an identifier that is none, and nothing else.
    change(data_dir, "DELETE FROM fact_keys WHERE fact IN (SELECT fact FROM facts WHERE source IN ('date', 'amount'))")
    change(data_dir, "DELETE FROM facts WHERE source IN ('date', 'amount')")
    change(data_dir, "UPDATE facts SET start = 4, \"end\" = 11 WHERE source = 'code'")
    change(data_dir, "DELETE FROM fact_keys WHERE fact IN (SELECT fact FROM facts WHERE pin IS NOT NULL)")
    change(data_dir, "INSERT INTO dropped_facts SELECT number, 'date', 3 FROM documents")
    change(data_dir, "UPDATE documents SET recognisers = 0")
    library = open_library()
    assert library.pending() == [document.id]
    assert library.is_answerable(document.id)
    library.process(document.id)

    assert library.pending() == []
    assert facts(library, document) == told
    assert library.get(TENANT, document.id).status is DocumentStatus.READY
    renewed = library._store.record(document.id)
    assert (renewed.recognisers, renewed.vectors_revision) == (RECOGNISERS_REVISION, record.vectors_revision)
    assert library.dropped_facts(TENANT, document.id) == {}
    assert library.search(TENANT, "What is INV-2024-000123?", [document.id]).passages[0].found_by[0] == "key"
    assert [fact.key for fact in library.facts(TENANT, document.id, key="what")] == ["what"]


def test_what_was_read_and_the_recognised_share_the_budget_when_facts_are_found_anew(open_library, add_text, data_dir):

    library = open_library(limits=Limits(max_facts=3))
    document = add_text(library, "Codes AB-1001, AB-1002. An oddity.")
    assert Surprises(library._store, 3).tell(document.id, 0, 9, [Surprise(Span(27, 33), 7.0)])
    library.close()
    change(data_dir, "UPDATE documents SET recognisers = 0")
    library = open_library(limits=Limits(max_facts=2))
    library.process(document.id)
    kinds = [fact.kind for fact in library.facts(TENANT, document.id)]
    assert sorted(kinds) == [FactKind.IDENTIFIER, FactKind.SURPRISING]
    assert library.dropped_facts(TENANT, document.id) == {"identifier": 1}


def test_another_embedder_and_other_recognisers_at_once(open_library, add_text, data_dir):

    library = open_library()
    document = add_text(library, TEXT)
    library.close()
    change(data_dir, "DELETE FROM facts")
    change(data_dir, "UPDATE documents SET recognisers = 0")
    library = open_library(HashEmbedder(dimension=32))
    assert library._store.record(document.id).vectors_revision is None
    library.process(document.id)
    assert library.get(TENANT, document.id).status is DocumentStatus.READY
    assert (FactKind.IDENTIFIER, "INV-2024-000123") in facts(library, document)
