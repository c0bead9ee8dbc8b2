"""What tenants do with files, uploads, vector stores and batches, and time with them: rules of a state machine."""

import hashlib
from typing import Any, ClassVar

from fakes_tenant import Member, Server, Store, Tenant, Upload, pick, until
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

# The same texts for both tenants and for documents and files, so that content is shared in every way it can be.
TEXTS = [f"Entry {place}. Invoice QX-77{place}1-B was paid by Margarethe Oldenkamp." for place in range(4)]
WHO = st.integers(0, 1)
WHICH = st.integers(0, 1 << 16)
NUMBERS = st.integers(0, 3)
AUTO: dict[str, Any] = {"type": "other"}
CHUNKING = [
    None,
    {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 50}},
    {"type": "static", "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 0}},
]
EXPIRY_SECONDS = [None, None, 3600, 86_400]


class StoreRules(RuleBasedStateMachine):
    """Half of the machine; ``check`` holds what one tenant sees against the model."""

    server: ClassVar[Server]
    tenants: list[Tenant]

    def check(self, tenant: Tenant) -> None:
        raise NotImplementedError

    def some(self, what: str) -> bool:
        return any(getattr(tenant, what) for tenant in self.tenants)

    # Files.

    @rule(who=WHO, which=WHICH, seconds=st.sampled_from(EXPIRY_SECONDS))
    def post_file(self, who: int, which: int, seconds: int | None) -> None:
        tenant, text = self.tenants[who], pick(TEXTS, which)
        fields = {"purpose": "assistants"}
        if seconds is not None:
            fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(seconds)}
        told = tenant.ask("POST", "/files", data=fields, files={"file": ("note.txt", text.encode(), "text/plain")})
        assert told["id"] not in tenant.files and told["bytes"] == len(text)
        tenant.files[told["id"]] = text
        if seconds is not None:
            assert told["expires_at"] == told["created_at"] + seconds
            tenant.expiry[told["id"]] = told["expires_at"]
        self.check(tenant)

    @precondition(lambda self: self.some("files"))
    @rule(who=WHO, which=WHICH)
    def read_file(self, who: int, which: int) -> None:
        tenant, stranger = self.tenants[who], self.tenants[1 - who]
        if tenant.files:
            file = pick(tenant.files, which)
            assert tenant.client.get(f"/v1/files/{file}/content").text == tenant.files[file]
            stranger.ask("GET", f"/files/{file}", 404)

    @precondition(lambda self: self.some("files"))
    @rule(who=WHO, which=WHICH)
    def delete_file(self, who: int, which: int) -> None:
        tenant = self.tenants[who]
        if not tenant.files:
            return
        file = pick(tenant.files, which)
        tenant.ask("DELETE", f"/files/{file}")
        tenant.ask("GET", f"/files/{file}", 404)
        tenant.forget_file(file)
        self.check(tenant)

    # Uploads.

    @rule(who=WHO, which=WHICH)
    def begin_upload(self, who: int, which: int) -> None:
        tenant, text = self.tenants[who], pick(TEXTS, which)
        body = {"filename": "parts.txt", "bytes": len(text), "purpose": "assistants", "mime_type": "text/plain"}
        told = tenant.ask("POST", "/uploads", json=body)
        assert told["status"] == "pending" and told["file"] is None
        tenant.uploads[told["id"]] = Upload(text, told["created_at"])

    @precondition(lambda self: self.some("uploads"))
    @rule(who=WHO, which=WHICH, start=st.integers(0, 70), length=st.integers(1, 70))
    def add_part(self, who: int, which: int, start: int, length: int) -> None:
        tenant = self.tenants[who]
        if not tenant.uploads:
            return
        name = pick(tenant.uploads, which)
        upload = tenant.uploads[name]
        data = upload.text[start : start + length] or upload.text
        sent = {"data": ("part", data.encode())}
        told = tenant.ask("POST", f"/uploads/{name}/parts", 200 if upload.status == "pending" else 400, files=sent)
        if upload.status == "pending":
            upload.parts[told["id"]] = data

    @precondition(lambda self: self.some("uploads"))
    @rule(who=WHO, which=WHICH, is_whole=st.booleans(), names_md5=st.booleans())
    def complete_upload(self, who: int, which: int, is_whole: bool, names_md5: bool) -> None:
        tenant = self.tenants[who]
        if not tenant.uploads:
            return
        name = pick(tenant.uploads, which)
        upload = tenant.uploads[name]
        if is_whole and upload.status == "pending":
            sent = {"data": ("part", upload.text.encode())}
            upload.parts[tenant.ask("POST", f"/uploads/{name}/parts", files=sent)["id"]] = upload.text
        parts = list(upload.parts)[-1 if is_whole else 0 :]
        if not parts:
            return
        body: dict[str, Any] = {"part_ids": parts}
        if names_md5:
            body["md5"] = hashlib.md5(upload.text.encode(), usedforsecurity=False).hexdigest()
        joined = "".join(upload.parts[part] for part in parts)
        is_right = len(joined) == len(upload.text) and (joined == upload.text or not names_md5)
        is_again = upload.status == "completed" and parts == upload.joined and upload.file in tenant.files
        if upload.status == "completed" and not is_again:
            return
        is_fine = is_again or (upload.status == "pending" and is_right)
        told = tenant.ask("POST", f"/uploads/{name}/complete", 200 if is_fine else 400, json=body)
        if not is_fine:
            return
        assert told["status"] == "completed"
        file = told["file"]["id"]
        if is_again:
            assert file == upload.file
        elif joined in TEXTS:
            tenant.files[file] = joined
        else:
            tenant.ask("DELETE", f"/files/{file}")
        upload.status, upload.joined, upload.file = "completed", parts, file
        self.check(tenant)

    @precondition(lambda self: self.some("uploads"))
    @rule(who=WHO, which=WHICH)
    def cancel_upload(self, who: int, which: int) -> None:
        tenant, stranger = self.tenants[who], self.tenants[1 - who]
        if not tenant.uploads:
            return
        name = pick(tenant.uploads, which)
        upload = tenant.uploads[name]
        stranger.ask("POST", f"/uploads/{name}/cancel", 404)
        is_fine = upload.status in ("pending", "cancelled")
        told = tenant.ask("POST", f"/uploads/{name}/cancel", 200 if is_fine else 400)
        if is_fine:
            assert told["status"] == "cancelled"
            upload.status = "cancelled"

    # Vector stores.

    @rule(who=WHO, days=st.sampled_from([None, 1, 3]))
    def make_store(self, who: int, days: int | None) -> None:
        tenant = self.tenants[who]
        body: dict[str, Any] = {"name": "a store"}
        if days is not None:
            body["expires_after"] = {"anchor": "last_active_at", "days": days}
        told = tenant.ask("POST", "/vector_stores", json=body)
        tenant.stores[told["id"]] = Store(days, told["last_active_at"])
        self.check(tenant)

    @precondition(lambda self: self.some("stores"))
    @rule(who=WHO, which=WHICH)
    def delete_store(self, who: int, which: int) -> None:
        tenant = self.tenants[who]
        if tenant.stores:
            store = pick(tenant.stores, which)
            tenant.ask("DELETE", f"/vector_stores/{store}")
            del tenant.stores[store]
            tenant.ask("GET", f"/vector_stores/{store}", 404)
            self.check(tenant)

    @precondition(lambda self: self.some("stores") and self.some("files"))
    @rule(who=WHO, which=WHICH, other=WHICH, number=NUMBERS, chunking=st.sampled_from(CHUNKING))
    def add_to_store(self, who: int, which: int, other: int, number: int, chunking: dict[str, Any] | None) -> None:
        tenant = self.tenants[who]
        if not (tenant.stores and tenant.files):
            return
        name, file = pick(tenant.stores, which), pick(tenant.files, other)
        body = {"file_id": file, "attributes": {"n": number}, "chunking_strategy": chunking}
        if not self.use(tenant, name, "POST", f"/vector_stores/{name}/files", body):
            return
        path = f"/vector_stores/{name}/files/{file}"
        until(lambda: tenant.ask("GET", path)["status"] != "in_progress", path)
        assert tenant.ask("GET", path)["status"] == "completed"
        tenant.stores[name].members[file] = Member({"n": number}, chunking or AUTO)
        tenant.learn()
        self.check(tenant)

    @precondition(lambda self: self.some("stores") and self.some("files"))
    @rule(who=WHO, which=WHICH, others=st.lists(WHICH, min_size=1, max_size=4), number=NUMBERS,
          chunking=st.sampled_from(CHUNKING), have_own=st.booleans())  # fmt: skip
    def add_batch(
        self, who: int, which: int, others: list[int], number: int, chunking: dict[str, Any] | None, have_own: bool
    ) -> None:
        tenant = self.tenants[who]
        if not (tenant.stores and tenant.files):
            return
        name = pick(tenant.stores, which)
        files = list(dict.fromkeys(pick(tenant.files, other) for other in others))
        more = {"attributes": {"n": number}, "chunking_strategy": chunking}
        body: dict[str, Any] = {"file_ids": files, **more}
        if have_own:
            body = {"files": [{"file_id": file, **more} for file in files]}
        told = self.use(tenant, name, "POST", f"/vector_stores/{name}/file_batches", body)
        if not told:
            return
        path = f"/vector_stores/{name}/file_batches/{told['id']}"
        until(lambda: tenant.ask("GET", path)["status"] != "in_progress", path)
        ended = tenant.ask("GET", path)
        assert (ended["status"], ended["file_counts"]["completed"]) == ("completed", len(files)), ended
        # Nothing is under way, so nothing is cancelled.
        assert tenant.ask("POST", f"{path}/cancel")["status"] == "completed"
        tenant.stores[name].members |= {file: Member({"n": number}, chunking or AUTO) for file in files}
        tenant.stores[name].batches[told["id"]] = set(files)
        tenant.learn()
        self.check(tenant)

    @precondition(lambda self: self.some("stores"))
    @rule(who=WHO, which=WHICH, number=NUMBERS)
    def set_attributes(self, who: int, which: int, number: int) -> None:
        tenant = self.tenants[who]
        places = [(name, file) for name, store in tenant.stores.items() for file in store.members]
        if places:
            name, file = pick(places, which)
            tenant.ask("POST", f"/vector_stores/{name}/files/{file}", json={"attributes": {"n": number}})
            tenant.stores[name].members[file].attributes = {"n": number}
            self.check(tenant)

    @precondition(lambda self: self.some("stores"))
    @rule(who=WHO, which=WHICH)
    def take_from_store(self, who: int, which: int) -> None:
        tenant = self.tenants[who]
        places = [(name, file) for name, store in tenant.stores.items() for file in store.members]
        if places:
            name, file = pick(places, which)
            tenant.ask("DELETE", f"/vector_stores/{name}/files/{file}")
            del tenant.stores[name].members[file]
            self.check(tenant)

    @precondition(lambda self: self.some("stores"))
    @rule(who=WHO, which=WHICH, what=WHICH, kind=st.sampled_from(["gte", "lt", "eq", "ne", None]), number=NUMBERS)
    def search_store(self, who: int, which: int, what: int, kind: str | None, number: int) -> None:
        tenant = self.tenants[who]
        if not tenant.stores:
            return
        name, text = pick(tenant.stores, which), pick(TEXTS, what)
        asked = text.split("QX-")[1][:6]
        body: dict[str, Any] = {"query": f"invoice QX-{asked}"}
        if kind is not None:
            body["filters"] = {"type": kind, "key": "n", "value": number}
        told = self.use(tenant, name, "POST", f"/vector_stores/{name}/search", body)
        if not told:
            return
        passing = {None: lambda n: True, "gte": lambda n: n >= number, "lt": lambda n: n < number,
                   "eq": lambda n: n == number, "ne": lambda n: n != number}[kind]  # fmt: skip
        members = tenant.stores[name].members
        have = {f for f, each in members.items() if each.status == "completed" and passing(each.attributes["n"])}
        assert {each["file_id"] for each in told["data"]} <= have
        exact = {file for file in have if tenant.files[file] == text}
        found = {each["file_id"] for each in told["data"] if f"QX-{asked}" in each["content"][0]["text"]}
        assert found == exact or (exact and found), (name, text, told)

    def use(self, tenant: Tenant, name: str, method: str, path: str, body: dict[str, Any]) -> Any:
        """The reply to what counts as a use of a store; None of one that expired, which says so."""
        store = tenant.stores[name]
        if store.is_expired(self.server.now()):
            assert tenant.ask("GET", f"/vector_stores/{name}")["status"] == "expired"
            error = tenant.ask(method, path, 400, json=body)["error"]
            assert error["code"] == "vector_store_expired", error
            return None
        store.used = self.server.now()
        return tenant.ask(method, path, json=body)

    # Time.

    @rule(hours=st.sampled_from([2, 7, 30]))
    def wait_long(self, hours: int) -> None:
        """Everything that expires meanwhile is gone."""
        self.server.forward_seconds += hours * 3600
        now = self.server.now()
        for tenant in self.tenants:
            for file in [file for file, moment in tenant.expiry.items() if moment <= now]:
                tenant.forget_file(file)
            for name, upload in tenant.uploads.items():
                if upload.status == "pending" and upload.begun + 3600 <= now:
                    upload.status = "expired"
                    tenant.ask("POST", f"/uploads/{name}/cancel", 400)
            self.check(tenant)

    @rule()
    def start_anew(self) -> None:
        """Nothing that was acknowledged is lost."""
        self.server.start()
        for tenant in self.tenants:
            tenant.client.base_url = self.server.url
            self.check(tenant)
