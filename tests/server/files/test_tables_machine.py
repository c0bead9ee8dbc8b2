"""Files, stores and batches of two tenants against a model in memory, in any order of doing."""

import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from retrieval.passage import Cutting
from server.files.database import FilesDatabase, Window
from server.files.errors import FilesError
from server.files.file_table import FileTable
from server.files.membership import Member, Membership
from server.files.nouns import FileCounts, NewFile
from server.files.store_table import StoreTable

TENANTS = st.sampled_from(["ann", "bob"])
CONTENTS = st.sampled_from([b"one", b"two", b"three"])
CUTTINGS = [None, Cutting(100, 0), Cutting(100, 50)]
EVERYTHING = Window(limit=1000, order="asc")


@dataclass
class ModelStore:
    tenant: str
    members: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    cut: dict[str, Cutting | None] = field(default_factory=dict)


class Tables(RuleBasedStateMachine):
    """``members`` are in the order of their coming; status and attributes are what was last said."""

    files = Bundle("files")
    stores = Bundle("stores")
    batches = Bundle("batches")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.open()
        self.known_files: dict[str, tuple[str, bytes]] = {}
        self.known_stores: dict[str, ModelStore] = {}
        self.known_batches: dict[str, tuple[str, set[str], bool]] = {}

    def open(self) -> None:
        self.database = FilesDatabase(self.directory / "files.sqlite3")
        self.table = FileTable(self.database, self.directory / "files")
        self.store_table = StoreTable(self.database)
        self.membership = Membership(self.database, self.table, self.store_table)

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.directory)

    @rule(target=files, tenant=TENANTS, content=CONTENTS)
    def send(self, tenant: str, content: bytes) -> str:
        source = self.directory / "source"
        source.write_bytes(content)
        file = self.table.add(tenant, NewFile("a.txt", "assistants", "text/plain", None, None), source)
        self.known_files[file.id] = (tenant, content)
        return file.id

    @initialize(target=files)
    def begin_with_files(self) -> Any:
        return multiple(*(self.send("ann", content) for content in (b"one", b"two", b"one")))

    @initialize(target=stores)
    def begin_with_a_store(self) -> str:
        return self.found("ann")

    @rule(file=consumes(files), tenant=TENANTS)
    def delete_file(self, file: str, tenant: str) -> None:
        if self.known_files[file][0] != tenant:
            with pytest.raises(FilesError):
                self.table.delete(tenant, file)
            tenant = self.known_files[file][0]
        self.table.delete(tenant, file)
        del self.known_files[file]
        for store in self.known_stores.values():
            store.members.pop(file, None)

    @rule(target=stores, tenant=TENANTS)
    def found(self, tenant: str) -> str:
        store = self.store_table.add(tenant, "", None, {}, None)
        self.known_stores[store] = ModelStore(tenant)
        return store

    @rule(store=consumes(stores))
    def delete_store(self, store: str) -> None:
        self.store_table.delete(self.known_stores.pop(store).tenant, store)

    @rule(
        target=batches,
        store=stores,
        chosen=st.lists(files, min_size=1, max_size=3, unique=True),
        number=st.integers(0, 3),
        is_batch=st.sampled_from([True, True, False]),
        is_foreign=st.sampled_from([False, False, False, True]),
        cutting=st.sampled_from(CUTTINGS),
    )
    def add(
        self,
        store: str,
        chosen: list[str],
        number: int,
        is_batch: bool,
        is_foreign: bool,
        cutting: Cutting | None,
    ) -> Any:
        if store not in self.known_stores:
            return multiple()
        model = self.known_stores[store]
        chosen = [file for file in chosen if file in self.known_files]
        if not is_foreign:
            chosen = [file for file in chosen if self.known_files[file][0] == model.tenant]
        if not chosen:
            return multiple()
        members = [Member(file, {"n": number}, None, cutting) for file in chosen]
        act = self.membership.add_batch if is_batch else self.membership.add
        if any(self.known_files[file][0] != model.tenant for file in chosen):
            with pytest.raises(FilesError):
                act(model.tenant, store, members)
            return multiple()
        batch = act(model.tenant, store, members)
        for file in chosen:
            status, _ = model.members.get(file, ("new", {}))
            if status not in ("in_progress", "completed") or model.cut[file] != cutting:
                model.members.pop(file, None)
                status = "in_progress"
            model.members[file], model.cut[file] = (status, {"n": number}), cutting
        if batch is None:
            return multiple()
        self.known_batches[batch.id] = (store, set(chosen), False)
        return batch.id

    @rule(file=files, is_error=st.booleans(), cutting=st.sampled_from(CUTTINGS))
    def settle(self, file: str, is_error: bool, cutting: Cutting | None) -> None:
        """As when the document of its content can be asked, cut so, or failed."""
        if file not in self.known_files:
            return
        tenant, content = self.known_files[file]
        document = self.table.intend(self.table.get(tenant, file))
        waiting = {
            store.cut[other]
            for store in self.known_stores.values()
            for other, (status, _) in store.members.items()
            if self.known_files[other] == (tenant, content) and status == "in_progress"
        }
        assert set(self.membership.cuttings(tenant, document)) == waiting
        self.membership.settle(tenant, document, cutting, ("invalid_file", "locked") if is_error else None)
        for store in self.known_stores.values():
            for other, (status, attributes) in store.members.items():
                is_meant = self.known_files[other] == (tenant, content) and store.cut[other] == cutting
                if is_meant and status == "in_progress":
                    store.members[other] = ("failed" if is_error else "completed", attributes)

    @rule(file=files)
    def lose(self, file: str) -> None:
        """As when the document of its content was deleted."""
        if file not in self.known_files:
            return
        tenant, content = self.known_files[file]
        document = self.table.document(self.table.get(tenant, file))
        if document is None:
            return
        self.table.forget_document(tenant, document)
        for store in self.known_stores.values():
            for other, (status, attributes) in store.members.items():
                if self.known_files[other] == (tenant, content) and status in ("in_progress", "completed"):
                    store.members[other] = ("failed", attributes)

    @rule(store=stores, file=files)
    def remove(self, store: str, file: str) -> None:
        model = self.known_stores.get(store)
        if model is None:
            return
        if file in model.members:
            self.membership.remove(model.tenant, store, file)
            del model.members[file]
        else:
            with pytest.raises(FilesError):
                self.membership.remove(model.tenant, store, file)

    @rule(batch=batches)
    def cancel(self, batch: str) -> None:
        store, chosen, is_cancelled = self.known_batches[batch]
        model = self.known_stores.get(store)
        if model is None:
            return
        self.membership.cancel_batch(model.tenant, store, batch)
        waiting = [file for file in chosen if model.members.get(file, ("", {}))[0] == "in_progress"]
        for file in waiting:
            model.members[file] = ("cancelled", model.members[file][1])
        self.known_batches[batch] = (store, chosen, is_cancelled or bool(waiting))

    @rule()
    def restart(self) -> None:
        self.database.close()
        self.open()
        self.table.recover()

    @invariant()
    def stores_are_as_said(self) -> None:
        for store, model in self.known_stores.items():
            found, _ = self.membership.page(model.tenant, store, EVERYTHING)
            assert [(each.file_id, (each.status.value, each.attributes)) for each in found] == [*model.members.items()]
            assert {each.file_id: each.cutting for each in found} == {file: model.cut[file] for file in model.members}
            counts = Counter(status for status, _ in model.members.values())
            told = self.store_table.get(model.tenant, store)
            assert told.counts == FileCounts(**counts)
            completed = [file for file, (status, _) in model.members.items() if status == "completed"]
            assert told.usage_bytes == sum(len(self.known_files[file][1]) for file in completed)
            documents = self.membership.documents(model.tenant, store, None)
            assert [each.file_id for each in documents] == completed
            for other in {"ann", "bob"} - {model.tenant}:
                with pytest.raises(FilesError):
                    self.membership.page(other, store, EVERYTHING)

    @invariant()
    def batches_are_as_said(self) -> None:
        for batch, (store, chosen, is_cancelled) in self.known_batches.items():
            if store in self.known_stores:
                model = self.known_stores[store]
                told = self.membership.batch(model.tenant, store, batch)
                counts = Counter(model.members[file][0] for file in chosen if file in model.members)
                assert (told.counts, told.is_cancelled) == (FileCounts(**counts), is_cancelled)

    @invariant()
    def files_are_as_said(self) -> None:
        for tenant in ("ann", "bob"):
            found, _ = self.table.page(tenant, EVERYTHING)
            assert {each.id: each.num_bytes for each in found} == {
                file: len(content) for file, (owner, content) in self.known_files.items() if owner == tenant
            }
        on_disk = sorted(path.read_bytes() for path in (self.directory / "files").rglob("*") if path.is_file())
        assert on_disk == sorted({content for _, content in self.known_files.values()})


TestTables = Tables.TestCase
TestTables.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
