"""Many short documents: each leaves little work, no files of its own beside what was sent, nothing held in memory."""

import os
import random
from contextlib import closing

import pytest

from retrieval.embedder import HashEmbedder
from retrieval.library import Library
from retrieval.limits import Limits
from retrieval.passage import DocumentStatus

TENANT = "acme"
SHORT = "The porter hides the spare key in a globe. Voucher LO-0042 paid for the lamp oil."
LONG = "\n\n".join(
    f"On day {number} the porter found key KX-{number} in the globe of the hall." for number in range(90)
)
WORDS = "porter key globe lantern oil harbour voyage horses ran café of the was LO-17 KX-3 2019".split()


def text_by(dice: random.Random) -> str:
    sentences = [" ".join(dice.choices(WORDS, k=dice.randint(3, 25))) + "." for _ in range(dice.randint(1, 40))]
    headings = [f"\n\n# {dice.choice(WORDS)} {number}\n\n" if dice.random() < 0.2 else " " for number in range(40)]
    return "".join(piece for pair in zip(sentences, headings, strict=False) for piece in pair)


def test_only_a_long_document_has_indexes_on_the_disk(library, add_text, data_dir):
    short, long = add_text(library, SHORT), add_text(library, LONG)
    for question in ("Where is the spare key?", "voucher LO-0042", "day 17"):
        assert library.search(TENANT, question, [short.id, long.id]).passages
    assert [path.name for path in (data_dir / "indexes").iterdir()] == [long.id]


def test_a_short_document_is_three_commits_and_its_file(library, add_text, monkeypatch):
    add_text(library, LONG)
    statements, synced, fsync = [], [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), fsync(descriptor)))
    library._store.database._writer.set_trace_callback(statements.append)
    assert add_text(library, SHORT).status is DocumentStatus.READY
    assert statements.count("COMMIT") == 3
    # The bytes, their name, and that of a folder for names that begin alike.
    assert len(synced) == 3


def test_a_document_waits_in_no_memory_until_it_is_asked(library, add_text):
    document = add_text(library, SHORT)
    assert library.stats().host_bytes == {"index": 0, "embeddings": 0}
    library.search(TENANT, "spare key", [document.id])
    held = library.stats().host_bytes
    assert held["index"] > 0 and held["embeddings"] == library.stats().num_vectors * 64 * 4


def test_files_of_an_earlier_program_go_when_the_document_is_asked(library, add_text, data_dir):
    document = add_text(library, SHORT)
    folder = data_dir / "indexes" / document.id
    (folder / "lexical").mkdir(parents=True)
    (folder / "lexical" / "meta.json").write_text("{}")
    assert library.search(TENANT, "spare key", [document.id]).passages
    assert not folder.exists() and library.stats().disk_bytes["index"] == 0


def test_the_answers_are_those_of_indexes_on_the_disk(tmp_path, monkeypatch):
    def library_of(name: str) -> tuple[Library, list[str]]:
        library, ids, dice = Library.open(tmp_path / name, HashEmbedder(dimension=64)), [], random.Random(0)
        for number in range(12):
            path = tmp_path / "upload"
            path.write_text(text_by(dice))
            document, _ = library.add(TENANT, f"{number}.md", "text/markdown", path)
            library.process(document.id)
            ids.append(document.id)
        return library, ids

    short, ids = library_of("short")
    monkeypatch.setattr("retrieval.shelf_files.SMALL_ROWS", 0)
    long, other_ids = library_of("long")
    with closing(short), closing(long):
        assert len(list((tmp_path / "long" / "indexes").iterdir())) == 12
        dice = random.Random(1)
        for _ in range(60):
            chosen = dice.sample(range(12), dice.choice([1, 1, 2, 5, 12]))
            question = " ".join(dice.choices(WORDS, k=dice.randint(1, 6)))
            found, expected = (
                library.search(TENANT, question, [own[number] for number in chosen], 12)
                for library, own in ((short, ids), (long, other_ids))
            )
            assert [(each.document_name, each.span, each.found_by, each.evidence) for each in found.passages] == [
                (each.document_name, each.span, each.found_by, each.evidence) for each in expected.passages
            ]
            assert [each.score for each in found.passages] == pytest.approx([each.score for each in expected.passages])
            assert (found.found, found.num_chunks_searched) == (expected.found, expected.num_chunks_searched)


def test_what_is_taken_in_together_is_undone_together(library, add_text, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(library._contents, "open_for_questions", lambda *_: 1 // 0)
        failed = add_text(library, SHORT)
    assert (failed.status, failed.num_characters) == (DocumentStatus.FAILED, None)
    number = library._store.record(failed.id).number
    assert library.text(TENANT, failed.id) == "" and library._contents.chunks(number) == []
    assert add_text(library, SHORT).status is DocumentStatus.READY


def test_a_few_of_many_pending_are_the_first_of_them(library, add_text):
    done, *queued = [add_text(library, f"Text {number} of some.", process=False).id for number in range(5)]
    library.process(done, stop=lambda: library.is_answerable(done))
    assert library.is_answerable(done)
    assert library.pending() == [*queued, done]
    assert [library.pending(most) for most in range(7)] == [[*queued, done][:most] for most in range(7)]
    # Whatever is being done with those that wait, the oldest is first.
    library._store.begin_parsing(library._store.record(queued[1]).number)
    library._store.write_text(library._store.record(queued[0]).number, "Text", ())
    assert library._store.unfinished() == [*queued, done] and library._store.unfinished(2) == queued[:2]
    library._ingestion.given_up.add(queued[0])
    assert library.pending(2) == queued[1:3]


def test_a_few_of_many_unread_are_the_first_of_them(tmp_path):
    with closing(Library.open(tmp_path / "data", HashEmbedder(dimension=64), has_reader=True)) as library:
        ids = []
        for number in range(3):
            (tmp_path / "upload").write_text(f"Text {number}.")
            document, _ = library.add(TENANT, "a.txt", "text/plain", tmp_path / "upload", is_to_be_read=True)
            library.process(document.id)
            ids.append(document.id)
        assert [each.id for each in library.unread()] == ids
        assert [each.id for each in library.unread(2)] == ids[:2]


def test_what_shelves_hold_is_added_up(open_library, add_text):
    library = open_library(limits=Limits(max_index_bytes=20_000))
    documents = [add_text(library, f"{SHORT} It is lamp {number} of all of them.") for number in range(9)]
    memory, dice = library._memory, random.Random(0)

    def held() -> int:
        return sum(shelf.num_bytes for _, shelf in memory._held.values())

    nums = set()
    for each in (*documents, *dice.choices(documents, k=20)):
        library.search(TENANT, "spare key", [each.id])
        nums.add(len(memory._held))
        assert 0 < memory._num_bytes == held() <= 20_000
    assert 1 < max(nums) < 9
    for each in documents[:8]:
        library.delete(TENANT, each.id)
        assert memory._num_bytes == held()
    # One that is opened at another revision takes the place of the one before.
    with library._store.database.write() as (connection, revision):
        connection.execute("UPDATE documents SET chunks_revision = ?", (revision,))
    library.search(TENANT, "spare key", [documents[8].id])
    assert len(memory._held) == 1 and memory._num_bytes == held()


def test_vectors_of_a_new_embedder_are_kept_by_the_next_start(open_library, add_text):
    document = add_text(open_library(), SHORT)
    library = open_library(HashEmbedder(dimension=32))
    assert library.pending() == [document.id]
    library.process(document.id)
    assert open_library(HashEmbedder(dimension=32)).pending() == []
    assert open_library().pending() == [document.id]
