"""The schema of the store, as the numbered steps that lead to it. Steps are only ever added at the end."""

import sqlite3
from contextlib import closing
from pathlib import Path

from retrieval.errors import StoreInvalid

# 1. documents.number is the short key everything of a document hangs on; documents.id is what the world sees.
#    A row in blobs stands as long as a document refers to it. Texts are cut into blocks so that a quote can be
#    read without its book. *_revision is the store's revision at which that part of the document was completed:
#    derived indexes carry it as their stamp.
_FIRST = """
CREATE TABLE revision (id INTEGER PRIMARY KEY CHECK (id = 1), value INTEGER NOT NULL);
INSERT INTO revision VALUES (1, 0);

CREATE TABLE blobs (sha256 TEXT PRIMARY KEY, num_bytes INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE documents (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    media_type TEXT NOT NULL,
    sha256 TEXT NOT NULL REFERENCES blobs (sha256),
    created_at INTEGER NOT NULL,
    stage TEXT NOT NULL CHECK (stage IN ('queued', 'parsing', 'indexing', 'dense', 'ready', 'failed', 'deleting')),
    answerable INTEGER NOT NULL DEFAULT 0,
    done INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    num_characters INTEGER,
    num_tokens INTEGER,
    num_rows INTEGER,
    num_facts INTEGER NOT NULL DEFAULT 0,
    fingerprint TEXT,
    chunks_revision INTEGER,
    vectors_revision INTEGER,
    error_code TEXT,
    error_message TEXT
);
CREATE UNIQUE INDEX documents_by_content ON documents (tenant, sha256, media_type) WHERE stage != 'deleting';
CREATE INDEX documents_by_tenant ON documents (tenant, number);
CREATE INDEX documents_by_stage ON documents (stage, number);
CREATE INDEX documents_by_blob ON documents (sha256);

CREATE TABLE texts (
    document INTEGER NOT NULL REFERENCES documents (number) ON DELETE CASCADE,
    start INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (document, start)
);

CREATE TABLE pages (
    document INTEGER NOT NULL REFERENCES documents (number) ON DELETE CASCADE,
    page INTEGER NOT NULL,
    start INTEGER NOT NULL,
    "end" INTEGER NOT NULL,
    PRIMARY KEY (document, page)
) WITHOUT ROWID;

CREATE TABLE chunks (
    document INTEGER NOT NULL REFERENCES documents (number) ON DELETE CASCADE,
    ordinal INTEGER NOT NULL,
    start INTEGER NOT NULL,
    "end" INTEGER NOT NULL,
    page INTEGER,
    heading TEXT NOT NULL,
    PRIMARY KEY (document, ordinal)
) WITHOUT ROWID;

CREATE INDEX chunks_by_start ON chunks (document, start);

CREATE TABLE vector_rows (
    document INTEGER NOT NULL REFERENCES documents (number) ON DELETE CASCADE,
    row INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    start INTEGER NOT NULL,
    "end" INTEGER NOT NULL,
    PRIMARY KEY (document, row)
) WITHOUT ROWID;

CREATE TABLE embeddings (
    document INTEGER NOT NULL REFERENCES documents (number) ON DELETE CASCADE,
    fingerprint TEXT NOT NULL,
    row INTEGER NOT NULL,
    vector BLOB NOT NULL,
    PRIMARY KEY (document, fingerprint, row)
) WITHOUT ROWID;

CREATE TABLE facts (
    document INTEGER NOT NULL REFERENCES documents (number) ON DELETE CASCADE,
    fact INTEGER NOT NULL,
    kind TEXT NOT NULL,
    start INTEGER NOT NULL,
    "end" INTEGER NOT NULL,
    evidence_start INTEGER NOT NULL,
    evidence_end INTEGER NOT NULL,
    source TEXT NOT NULL,
    score REAL NOT NULL,
    PRIMARY KEY (document, fact)
) WITHOUT ROWID;

CREATE TABLE fact_keys (
    document INTEGER NOT NULL REFERENCES documents (number) ON DELETE CASCADE,
    key TEXT NOT NULL,
    form INTEGER NOT NULL,
    fact INTEGER NOT NULL,
    PRIMARY KEY (document, key, form, fact)
) WITHOUT ROWID;
"""

# 2. Whoever made a document may want it read to its end, by someone this package knows nothing of: `reading` is NULL
#    for those who do not, and else where that is. `reading_note` says why a reading was left out.
_READING = """
ALTER TABLE documents ADD COLUMN reading TEXT CHECK (reading IN ('wanted', 'done', 'left_out'));
ALTER TABLE documents ADD COLUMN reading_note TEXT;
CREATE INDEX documents_by_reading ON documents (reading, number) WHERE reading = 'wanted';
"""

# 3. `pins` are what users said; each is a fact as well, which is made anew with the others. `dropped_facts` counts what
#    was beyond the document's budget.
_PINS = """
CREATE TABLE pins (
    id TEXT PRIMARY KEY,
    document INTEGER NOT NULL REFERENCES documents (number) ON DELETE CASCADE,
    start INTEGER NOT NULL,
    "end" INTEGER NOT NULL,
    evidence_start INTEGER NOT NULL,
    evidence_end INTEGER NOT NULL,
    text TEXT NOT NULL,
    key TEXT
) WITHOUT ROWID;
CREATE INDEX pins_by_document ON pins (document, start);

ALTER TABLE facts ADD COLUMN pin TEXT;
CREATE INDEX facts_by_start ON facts (document, start, fact);
CREATE INDEX facts_by_pin ON facts (document, pin) WHERE pin IS NOT NULL;

CREATE TABLE dropped_facts (
    document INTEGER NOT NULL REFERENCES documents (number) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (document, kind)
) WITHOUT ROWID;
"""

# 4. Facts may also come from a reading: how many tokens of it have told theirs.
_TOLD = """
ALTER TABLE documents ADD COLUMN told_tokens INTEGER NOT NULL DEFAULT 0;
"""

# 5. Which recognisers found a document's facts: other ones find others. 0 are those of before they were counted.
_RECOGNISERS = """
ALTER TABLE documents ADD COLUMN recognisers INTEGER NOT NULL DEFAULT 0;
"""

# 6. Where the pieces of a document begin and end that has to be cut in a way of its own: pairs of 32-bit integers.
_CUTTINGS = """
CREATE TABLE pieces (
    document INTEGER NOT NULL REFERENCES documents (number) ON DELETE CASCADE,
    max_tokens INTEGER NOT NULL,
    overlap_tokens INTEGER NOT NULL,
    spans BLOB NOT NULL,
    PRIMARY KEY (document, max_tokens, overlap_tokens)
) WITHOUT ROWID;
"""

# 7. What would else be counted over all documents whenever somebody looks, kept while they change: every few seconds
#    somebody does look.
_VECTORS = "CASE {row}.stage WHEN 'ready' THEN coalesce({row}.num_rows, 0) WHEN 'dense' THEN {row}.done ELSE 0 END"
_ADD = (
    "UPDATE tallies SET num_documents = num_documents {sign} 1, num_vectors = num_vectors {sign} ({vectors}), "
    "num_facts = num_facts {sign} {row}.num_facts WHERE stage = {row}.stage AND reading = coalesce({row}.reading, '');"
)
_COME = _ADD.format(sign="+", row="NEW", vectors=_VECTORS.format(row="NEW"))
_GO = _ADD.format(sign="-", row="OLD", vectors=_VECTORS.format(row="OLD"))
_TALLIES = f"""
CREATE TABLE tallies (
    stage TEXT NOT NULL,
    reading TEXT NOT NULL,
    num_documents INTEGER NOT NULL DEFAULT 0,
    num_vectors INTEGER NOT NULL DEFAULT 0,
    num_facts INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (stage, reading)
) WITHOUT ROWID;
WITH stages (stage) AS (VALUES ('queued'), ('parsing'), ('indexing'), ('dense'), ('ready'), ('failed'), ('deleting')),
    readings (reading) AS (VALUES (''), ('wanted'), ('done'), ('left_out'))
INSERT INTO tallies (stage, reading) SELECT stage, reading FROM stages, readings;
UPDATE tallies SET (num_documents, num_vectors, num_facts) = (
    SELECT count(*), coalesce(sum({_VECTORS.format(row="d")}), 0), coalesce(sum(d.num_facts), 0) FROM documents d
    WHERE d.stage = tallies.stage AND coalesce(d.reading, '') = tallies.reading
);
CREATE TRIGGER documents_come AFTER INSERT ON documents BEGIN {_COME} END;
CREATE TRIGGER documents_go AFTER DELETE ON documents BEGIN {_GO} END;
CREATE TRIGGER documents_change AFTER UPDATE OF stage, reading, num_rows, num_facts, done ON documents
    BEGIN {_GO} {_COME} END;

CREATE TABLE blob_tally (id INTEGER PRIMARY KEY CHECK (id = 1), num_bytes INTEGER NOT NULL);
INSERT INTO blob_tally SELECT 1, coalesce(sum(num_bytes), 0) FROM blobs;
CREATE TRIGGER blobs_come AFTER INSERT ON blobs BEGIN UPDATE blob_tally SET num_bytes = num_bytes + NEW.num_bytes; END;
CREATE TRIGGER blobs_go AFTER DELETE ON blobs BEGIN UPDATE blob_tally SET num_bytes = num_bytes - OLD.num_bytes; END;
"""

# 8. The words of each document of a page or a few, counted (``retrieval.word_counts``), for those that are asked with
#    many others. Derived, like an index: one that is missing or of another format is made anew. And keys by themselves:
#    among thousands of documents few have one.
_MANY_AT_ONCE = """
CREATE INDEX fact_keys_by_key ON fact_keys (key, document);
CREATE TABLE word_counts (
    document INTEGER PRIMARY KEY REFERENCES documents (number) ON DELETE CASCADE,
    format INTEGER NOT NULL,
    counts BLOB NOT NULL
);
"""

MIGRATIONS: tuple[str, ...] = (_FIRST, _READING, _PINS, _TOLD, _RECOGNISERS, _CUTTINGS, _TALLIES, _MANY_AT_ONCE)


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema to the newest version, one transaction a step.

    Raises:
        StoreInvalid: the store was written by a newer program.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StoreInvalid(
            f"{path} has schema version {version}, this program knows versions up to {len(MIGRATIONS)}; "
            "start the newer program that wrote it, or name another data directory"
        )
    for number, step in enumerate(MIGRATIONS[version:], start=version + 1):
        with closing(connection.cursor()) as cursor:
            # One script, one transaction: a crash between its statements leaves the version before.
            cursor.executescript(f"BEGIN IMMEDIATE; {step} PRAGMA user_version = {number}; COMMIT;")
