"""The archive from outside: documents come, are worked on, are asked, go, and outlive whatever happens to the files."""

import logging
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from reportlab.pdfgen.canvas import Canvas

from retrieval.embedder import HashEmbedder
from retrieval.errors import DataDirectoryInUse, DocumentNotReady, UnknownDocument
from retrieval.ingestion import EMBEDDING_BATCH
from retrieval.library import Library
from retrieval.limits import Limits
from retrieval.passage import DocumentStatus

TENANT = "acme"
STORY = "\n\n".join(
    f"Chapter {number}. The keeper of lighthouse {number} was called Keeper{number:03d}. "
    f"He paid {number * 111} crowns for lamp oil on voucher LO-{number:04d}. "
    + "The sea was grey and the wind came from the north all night. "
    * 6
    for number in range(1, 81)
)


class SlowStart(HashEmbedder):
    """Counts its batches, and runs a hook before each."""

    def __init__(self, hook=lambda batch: None) -> None:
        super().__init__(dimension=64)
        self.batches: list[int] = []
        self.hook = hook

    def embed_passages(self, texts):
        self.hook(len(self.batches))
        self.batches.append(len(texts))
        return super().embed_passages(texts)

    def embed_query(self, text):
        return HashEmbedder(dimension=64).embed_query(text)


def occurrences(directory: Path, needle: bytes) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and needle in path.read_bytes()]


def test_a_document_goes_from_bytes_to_answers(library, add_text):
    queued = add_text(library, STORY, process=False)
    assert (queued.status, queued.answerable, queued.num_bytes) == (DocumentStatus.QUEUED, False, len(STORY))
    assert library.pending() == [queued.id]
    library.process(queued.id)
    ready = library.get(TENANT, queued.id)
    assert (ready.status, ready.answerable, ready.num_characters) == (DocumentStatus.READY, True, len(STORY))
    assert (ready.progress.stage, ready.progress.done) == ("ready", ready.progress.total)
    assert library.pending() == []
    result = library.search(TENANT, "What was paid on voucher LO-0042?", [ready.id])
    top = result.passages[0]
    assert "paid 4662 crowns" in top.text
    assert (
        top.text == library.text(TENANT, ready.id, top.span.start, top.span.end) == STORY[top.span.start : top.span.end]
    )
    assert STORY[top.evidence.start : top.evidence.end] == "He paid 4662 crowns for lamp oil on voucher LO-0042."
    assert result.reason == "searched by keys, words and meaning"


def test_tokens_are_counted_once_the_document_can_be_asked(open_library, add_text):
    seen = []

    def count(text: str) -> int:
        seen.append(library.get(TENANT, library.pending()[0]).answerable)
        return len(text.split())

    library = open_library(count_tokens=count)
    assert add_text(library, STORY).num_tokens == len(STORY.split())
    assert seen == [True]


def test_it_can_be_asked_before_its_vectors_stand_and_says_so(open_library, add_text):
    results = []
    embedder = SlowStart(lambda batch: results.append(library.search(TENANT, "lighthouse 7", [queued.id])))
    library = open_library(embedder)
    queued = add_text(library, STORY, process=False)
    library.process(queued.id)
    assert "Keeper007" in results[0].passages[0].text
    assert results[0].reason.startswith("searched by keys and words; the vectors")
    assert {name for result in results for passage in result.passages for name in passage.found_by} <= {
        "key",
        "lexical",
    }
    assert library.search(TENANT, "lighthouse 7", [queued.id]).reason == "searched by keys, words and meaning"


def test_progress_moves_batch_by_batch(open_library, add_text):
    shown = []
    library = open_library(SlowStart(lambda batch: shown.append(library.get(TENANT, queued.id).progress)))
    queued = add_text(library, STORY, process=False)
    library.process(queued.id)
    total = shown[0].total
    assert total > 2 * EMBEDDING_BATCH
    assert [progress.done for progress in shown] == list(range(0, total, EMBEDDING_BATCH))
    assert {(progress.stage, progress.total) for progress in shown} == {("dense", total)}
    assert shown[0].seconds_left is None
    assert all(progress.seconds_left > 0 for progress in shown[1:])
    assert library.get(TENANT, queued.id).progress.seconds_left is None


def test_stop_is_heeded_between_batches_and_work_resumes_there(open_library, add_text):
    embedder = SlowStart()
    library = open_library(embedder)
    queued = add_text(library, STORY, process=False)
    library.process(queued.id, stop=lambda: len(embedder.batches) == 2)
    assert embedder.batches == [EMBEDDING_BATCH] * 2
    assert library.pending() == [queued.id]
    resumed = SlowStart()
    library = open_library(resumed)
    assert library.get(TENANT, queued.id).progress.done == 2 * EMBEDDING_BATCH
    library.process(queued.id)
    done = library.get(TENANT, queued.id)
    assert done.status is DocumentStatus.READY
    assert sum(resumed.batches) == done.progress.total - 2 * EMBEDDING_BATCH


def test_content_sent_twice_is_one_document(library, add_text, tmp_path):
    first = add_text(library, STORY)
    again, accepted = library.add(TENANT, "other name", "text/plain", tmp_path / "upload")
    assert (again, accepted) == (first, False)
    other, accepted = library.add("other", "theirs", "text/plain", tmp_path / "upload")
    assert accepted
    assert other.id != first.id


def test_a_document_of_another_tenant_does_not_exist(library, add_text):
    theirs = add_text(library, STORY, tenant="other")
    for call in (
        lambda: library.get(TENANT, theirs.id),
        lambda: library.text(TENANT, theirs.id, 0, 5),
        lambda: library.delete(TENANT, theirs.id),
        lambda: library.search(TENANT, "lighthouse", [theirs.id]),
        lambda: library.list(TENANT, after=theirs.id),
    ):
        with pytest.raises(UnknownDocument, match=theirs.id):
            call()
    assert library.list(TENANT) == []
    assert library.list("other") == [theirs]


def test_a_document_that_cannot_be_asked_says_how_far_it_is(library, add_text):
    queued = add_text(library, STORY, process=False)
    with pytest.raises(DocumentNotReady, match="queued") as caught:
        library.search(TENANT, "lighthouse", [queued.id])
    assert caught.value.document == queued


@pytest.mark.parametrize(("text", "limit", "code"), [("  \n ", 100, "no_text"), ("long " * 50, 100, "too_long")])
def test_what_cannot_be_parsed_fails_with_a_code(open_library, add_text, text, limit, code):
    failed = add_text(open_library(limits=Limits(max_characters=limit)), text)
    assert (failed.status, failed.answerable, failed.error.code) == (DocumentStatus.FAILED, False, code)


def test_a_failed_document_sent_again_is_tried_again(open_library, add_text):
    text = "A lantern. " * 50
    failed = add_text(open_library(limits=Limits(max_characters=100)), text)
    library = open_library()
    assert library.pending() == []
    again = add_text(library, text)
    assert (again.id, again.status, again.error) == (failed.id, DocumentStatus.READY, None)


def test_one_documents_trouble_is_not_anothers(open_library, add_text, caplog):
    def hook(batch):
        if len(library.pending()) == 2 and batch == 1:
            raise RuntimeError("the embedder fell over")

    library = open_library(SlowStart(hook))
    first = add_text(library, STORY, process=False)
    second = add_text(library, "A second story.", process=False)
    for document_id in library.pending():
        library.process(document_id)
    failed = library.get(TENANT, first.id)
    assert (failed.status, failed.error.code) == (DocumentStatus.FAILED, "internal_error")
    assert "RuntimeError: the embedder fell over" in failed.error.message
    assert library.get(TENANT, second.id).status is DocumentStatus.READY
    assert "could not be read" in caplog.text
    # Its words were indexed before, so it can still be asked.
    assert "Keeper009" in library.search(TENANT, "lighthouse 9", [first.id]).passages[0].text


def test_when_even_the_failure_cannot_be_written_the_worker_moves_on(open_library, add_text, monkeypatch, caplog):
    library = open_library(SlowStart(lambda batch: 1 // 0))
    queued = add_text(library, STORY, process=False)

    def full(number, error):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(library._store, "fail", full)
    library.process(queued.id)
    assert "the store cannot be written" in caplog.text
    assert library.pending() == []
    assert open_library().pending() == [queued.id]


def test_a_directory_is_for_one_library(library, data_dir):
    with pytest.raises(DataDirectoryInUse, match="in use by another process"):
        Library.open(data_dir, HashEmbedder())
    library.close()
    Library.open(data_dir, HashEmbedder()).close()


def test_deleted_means_nothing_of_it_is_on_the_disk(library, add_text, data_dir):
    secret = "Xyzzyqwerty7Plugh"
    kept = add_text(library, STORY + "\n\nA common word, zanzibar.")
    doomed = add_text(library, f"{STORY}\n\nThe password is {secret}.\n\nKey {secret}: value-{secret}-1", "secret.txt")
    library.search(TENANT, f"Where does {secret} stand?", [kept.id, doomed.id])
    assert len(occurrences(data_dir, secret.encode())) >= 2
    assert occurrences(data_dir, secret.casefold().encode())
    assert occurrences(data_dir, doomed.id.encode())
    before = library.search(TENANT, "Keeper030", [kept.id])
    library.delete(TENANT, doomed.id)
    for trace in (secret, secret.casefold(), doomed.id, "secret.txt"):
        assert occurrences(data_dir, trace.encode()) == [], trace
    with pytest.raises(UnknownDocument):
        library.get(TENANT, doomed.id)
    assert library.search(TENANT, "Keeper030", [kept.id]).passages == before.passages
    assert occurrences(data_dir, b"zanzibar")


def test_bytes_sent_by_two_tenants_stay_until_the_second_deletes(library, add_text, data_dir):
    mine, theirs = add_text(library, STORY), add_text(library, STORY, tenant="other")
    library.delete(TENANT, mine.id)
    assert library.search("other", "Keeper011", [theirs.id]).found
    assert occurrences(data_dir / "blobs", b"Keeper011")
    library.delete("other", theirs.id)
    assert occurrences(data_dir, b"Keeper011") == []


def test_a_deletion_waits_for_the_work_and_stops_it(open_library, add_text, data_dir):
    embedding, go_on = threading.Event(), threading.Event()

    def hook(batch):
        embedding.set()
        assert go_on.wait(30)

    library = open_library(SlowStart(hook))
    queued = add_text(library, STORY, process=False)
    worker = threading.Thread(target=library.process, args=(queued.id,))
    worker.start()
    assert embedding.wait(30)
    deleter = threading.Thread(target=library.delete, args=(TENANT, queued.id))
    deleter.start()
    deleter.join(1.0)
    assert library.list(TENANT) == []
    assert deleter.is_alive()
    assert occurrences(data_dir, b"Keeper011")
    go_on.set()
    worker.join(30)
    deleter.join(30)
    assert occurrences(data_dir, b"Keeper011") == []
    assert len(library._ingestion._embedder.batches) == 1


def test_an_interrupted_deletion_is_finished_at_the_next_start(open_library, add_text, data_dir):
    library = open_library()
    doomed = add_text(library, STORY)
    library._store.mark_deleting(library._store.record(doomed.id).number)
    assert library.list(TENANT) == []
    assert occurrences(data_dir, b"Keeper011")
    library = open_library()
    assert occurrences(data_dir, b"Keeper011") == []
    assert library.stats().num_documents == {status.value: 0 for status in DocumentStatus}


QUESTIONS = (
    "What was paid on voucher LO-0017?",
    "Who kept lighthouse 23?",
    "grey sea and north wind",
    "voucher lo0044",
    "Keeper051",
)


def damage_nothing(directory: Path) -> None:
    pass


def damage_all(directory: Path) -> None:
    shutil.rmtree(directory)


def flip(suffix: str):
    def damage(directory: Path) -> None:
        (path,) = (path for path in directory.rglob(f"*{suffix}"))
        content = bytearray(path.read_bytes())
        content[-len(content) // 3] ^= 1
        path.write_bytes(content)

    return damage


def truncate(suffix: str):
    def damage(directory: Path) -> None:
        (path,) = (path for path in directory.rglob(f"*{suffix}"))
        path.write_bytes(path.read_bytes()[:-10])

    return damage


def remove(suffix: str):
    def damage(directory: Path) -> None:
        for path in list(directory.rglob(f"*{suffix}")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


@pytest.mark.parametrize(
    ("damage", "logged"),
    [
        pytest.param(damage_nothing, "", id="none"),
        pytest.param(damage_all, "", id="all deleted"),
        pytest.param(flip(".fano"), "the vector index of {} is made anew: vectors.fano was altered", id="vector bit"),
        pytest.param(
            truncate(".fano"), "the vector index of {} is made anew: vectors.fano was altered", id="vector cut"
        ),
        pytest.param(remove(".fano"), "", id="vectors deleted"),
        pytest.param(flip(".term"), "the lexical index of {} is made anew: lexical was altered", id="lexical bit"),
        pytest.param(truncate(".idx"), "the lexical index of {} is made anew: lexical was altered", id="lexical cut"),
        pytest.param(
            remove("lexical"), "the lexical index of {} is made anew: lexical cannot be verified", id="lexical folder"
        ),
        pytest.param(remove("lexical.json"), "", id="seal deleted"),
    ],
)
def test_no_damage_to_the_indexes_changes_an_answer(open_library, add_text, data_dir, caplog, damage, logged):
    library = open_library()
    document = add_text(library, STORY)
    before = [library.search(TENANT, question, [document.id]).passages for question in QUESTIONS]
    files = {path.name for path in (data_dir / "indexes" / document.id).iterdir()}
    library.close()
    damage(data_dir / "indexes")
    with caplog.at_level(logging.WARNING):
        library = open_library()
        after = [library.search(TENANT, question, [document.id]).passages for question in QUESTIONS]
    assert after == before
    assert logged.format(document.id) in caplog.text
    assert bool(logged) == bool(caplog.records)
    assert {path.name for path in (data_dir / "indexes" / document.id).iterdir()} == files


def test_a_large_document_gets_the_clustered_index_and_any_kind_is_made_anew_alike(
    open_library, add_text, data_dir, monkeypatch
):
    flat = open_library()
    small, large = add_text(flat, "The mill stands by the river, far from any sea. " * 80), add_text(flat, STORY)
    questions = ("Who kept lighthouse 7?", "grey sea and north wind", "the mill", "What did Keeper033 pay?")

    def answers(library: Library) -> list[object]:
        return [library.search(TENANT, question, [small.id, large.id]).passages for question in questions]

    expected = answers(flat)
    # All lists of so few rows are looked at: the answers are those of the flat index.
    monkeypatch.setattr("retrieval.library.LARGE_ROWS", 100)
    for _ in range(2):
        library = open_library()
        assert answers(library) == expected
        kinds = {path.parent.name: b"ClusteredIndex" in path.read_bytes() for path in data_dir.rglob("vectors.fano")}
        assert kinds == {small.id: False, large.id: True}
        first = (data_dir / "indexes" / large.id / "vectors.fano").read_bytes()
        library.close()
        shutil.rmtree(data_dir / "indexes")
        library = open_library()
        assert answers(library) == expected
        assert (data_dir / "indexes" / large.id / "vectors.fano").read_bytes() == first


def test_indexes_of_another_state_of_the_store_are_not_used(open_library, add_text, data_dir):
    library = open_library()
    first, second = add_text(library, STORY), add_text(library, "Only Keeper011 is here, and nobody else is. " * 100)
    before = library.search(TENANT, "Keeper011", [first.id]).passages
    library.close()
    shutil.rmtree(data_dir / "indexes" / first.id)
    shutil.copytree(data_dir / "indexes" / second.id, data_dir / "indexes" / first.id)
    assert open_library().search(TENANT, "Keeper011", [first.id]).passages == before


def test_an_index_of_an_earlier_revision_catches_up(open_library, add_text, caplog):
    library = open_library()
    document = add_text(library, STORY)
    before = library.search(TENANT, "Keeper011", [document.id]).passages
    with library._store.database.write() as (connection, revision):
        connection.execute("UPDATE documents SET chunks_revision = ?, vectors_revision = ?", (revision, revision))
    assert library.search(TENANT, "Keeper011", [document.id]).passages == before
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert all("is stamped" in line and f"'revision': {revision}" in line for line in said)
    caplog.clear()
    assert open_library().search(TENANT, "Keeper011", [document.id]).passages == before
    assert caplog.records == []


def test_a_new_embedder_means_new_vectors_and_answers_meanwhile(open_library, add_text):
    document = add_text(open_library(), STORY)
    library = open_library(HashEmbedder(dimension=32))
    assert library.pending() == [document.id]
    assert "Keeper007" in library.search(TENANT, "lighthouse 7", [document.id]).passages[0].text
    library.process(document.id)
    assert library.get(TENANT, document.id).status is DocumentStatus.READY
    assert library.stats().host_bytes["embeddings"] == library.stats().num_vectors * 32 * 4


def test_shelves_in_memory_stay_within_their_limit(open_library, add_text):
    library = open_library(limits=Limits(max_index_bytes=1))
    documents = [add_text(library, STORY.replace("Keeper", name)) for name in ("Anna", "Boris", "Clara")]
    assert library.stats().host_bytes["embeddings"] * 3 == library.stats().num_vectors * 64 * 4
    texts = [library.search(TENANT, "lighthouse 7", [document.id]).passages[0].text for document in documents]
    assert [name in text for name, text in zip(("Anna007", "Boris007", "Clara007"), texts, strict=True)] == [True] * 3


def test_the_bill_is_right(library, add_text, data_dir):
    document = add_text(library, STORY)
    add_text(library, "A second story.", process=False)
    stats = library.stats()
    assert stats.num_documents == {"queued": 1, "parsing": 0, "indexing": 0, "reading": 0, "ready": 1, "failed": 0}
    assert stats.num_vectors == document.progress.total
    assert stats.num_facts >= 60
    assert stats.host_bytes["embeddings"] == stats.num_vectors * 64 * 4
    on_disk = {
        kind: sum(
            path.stat().st_size
            for path in data_dir.rglob("*")
            if path.is_file() and (kind == "index") == ("indexes" in path.parts)
        )
        for kind in ("store", "index")
    }
    assert stats.disk_bytes == on_disk
    library.delete(TENANT, document.id)
    assert library.stats().disk_bytes["index"] == 0
    assert library.stats().num_vectors == library.stats().num_facts == 0


def test_asking_while_reading_and_deleting(open_library, add_text):
    library = open_library()
    asked = add_text(library, STORY)
    done = threading.Event()
    wrong: list[object] = []

    def ask() -> None:
        while not done.is_set():
            result = library.search(TENANT, "Who kept lighthouse 23?", [asked.id])
            if "Keeper023" not in result.passages[0].text:
                wrong.append(result)
            library.stats()

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(3):
        other = add_text(library, STORY.replace("Keeper", f"Guard{number}"))
        library.delete(TENANT, other.id)
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert library.list(TENANT) == [asked]


def test_vectors_in_the_index_are_those_in_the_store(library, add_text):
    document = add_text(library, STORY)
    record = library._store.record(document.id)
    stored = library._contents.embeddings(record.number, HashEmbedder(dimension=64).fingerprint, 64)
    shelf = library._shelves.open(record)
    np.testing.assert_allclose([shelf.vectors.search(row, 1)[0][1] for row in stored], 1.0, atol=1e-6)


def test_every_code_point_of_a_pdf_knows_its_page(library, tmp_path):
    path = tmp_path / "a.pdf"
    canvas = Canvas(str(path))
    for line in ("The office opens at nine.", "Clara Ostrander settled it.", "The end."):
        canvas.drawString(72, 720, line)
        canvas.showPage()
    canvas.save()
    document, _ = library.add(TENANT, "a.pdf", "application/pdf", path)
    library.process(document.id)
    text = library.text(TENANT, document.id)
    shown = {quote: library.page(TENANT, document.id, text.index(quote)) for quote in ("office", "Clara", "it.", "end")}
    assert shown == {"office": 1, "Clara": 2, "it.": 2, "end": 3}


def test_a_text_has_no_pages(library, add_text):
    assert library.page(TENANT, add_text(library, "No pages here.").id, 3) is None
