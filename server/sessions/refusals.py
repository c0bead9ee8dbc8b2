"""Why a request about a named session is refused, each with what the client or the operator can do."""

from collections.abc import Mapping, Sequence

from server.sessions.errors import SessionError

# What an operator would change to get the former value of a part of the fingerprint back.
REMEDIES = {
    "weights": "start the server with the model that the session was made with",
    "tokenizer": "start the server with the model that the session was made with",
    "policy": "start the server with the FANO_POLICY, FANO_SINKS and FANO_WINDOW that the session was made with",
    "dtype": "start the server with FANO_DTYPE set to {before}",
    "kernels": "start the server on the machine and version that the session was made with",
}


class SessionBusy(SessionError):
    """Another request has the session."""

    retry_after_seconds = 1

    def __init__(self, name: str) -> None:
        super().__init__(f"session {name!r} is in use by another request; wait for its end, or use a fork of it")


class SessionFingerprint(SessionError):
    """The session's state was made by an engine whose states mean something else."""

    def __init__(self, name: str, before: Mapping[str, str], now: Mapping[str, str], parts: Sequence[str]) -> None:
        told = "; ".join(f"{part} was {before.get(part)!r} and is {now.get(part)!r}" for part in parts)
        remedy = REMEDIES[parts[0]].format(before=before.get(parts[0]))
        super().__init__(
            f"the state of session {name!r} cannot be used by this server: {told}; {remedy}, or delete the session and "
            "send the conversation again"
        )
        self.parts = tuple(parts)


class SessionPolicy(SessionError):
    """A request wants another attention policy than the session has."""

    param = "fano.policy"

    def __init__(self, name: str, own: str, asked: str) -> None:
        super().__init__(
            f"session {name!r} is read under policy {own!r} and the request asks for {asked!r}; leave fano.policy out, "
            "or use another session"
        )


class SessionNotSaved(SessionError):
    """There is no saved state to restore."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no state of session {name!r} was saved; POST /v1/sessions/{name}/save saves it")


class SessionOfDocument(SessionError):
    """A document's own session is not changed by conversations."""

    param = "fano.session"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} is the reading of a document, which conversations share; POST /v1/sessions/{name}/fork "
            'with {"to": "a-name"}, and use that session'
        )


class SessionReading(SessionError):
    """A document is not read to its end yet."""

    retry_after_seconds = 5

    def __init__(self, name: str) -> None:
        super().__init__(f"the document of {name!r} is still being read; wait until its status is ready")


class DocumentInUse(SessionError):
    """Sessions contain what is to be deleted."""

    def __init__(self, document_id: str, names: Sequence[str]) -> None:
        listed = ", ".join(repr(name) for name in names)
        super().__init__(
            f"the document {document_id!r} is contained in the sessions {listed}; delete them first, or send "
            "?cascade=true to delete them too"
        )
        self.names = tuple(names)
