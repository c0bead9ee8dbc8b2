"""What the server itself refuses, or fails at, as exceptions; server/error_table.py says what each is over HTTP."""

from math import ceil

from starlette.exceptions import HTTPException

from model.errors import ModelError


class RequestInvalid(Exception):
    """A request cannot be served as it is; ``param`` is the dotted path of the field to blame."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class StreamRequired(Exception):
    """So much of a prompt is to be read that whoever waits for the whole reply is likely to give up before it comes."""

    param = "stream"

    def __init__(self, num_tokens: int, most: int, seconds: float | None) -> None:
        self.num_tokens, self.most, self.seconds = num_tokens, most, seconds
        takes = "takes a while" if seconds is None else f"takes about {ceil(seconds)} seconds at the pace of late"
        super().__init__(
            f"{num_tokens} tokens of the prompt are to be read, which {takes}, and more than {most} are read for "
            "streams alone; send stream: true, which also tells how far it is, or raise FANO_MAX_WHOLE_PROMPT_TOKENS"
        )


class KeyRefused(Exception):
    """No key came with the request, or a wrong one."""

    def __init__(self) -> None:
        super().__init__("a valid key is needed: send the header Authorization: Bearer KEY")


class KeysUnknown(Exception):
    """Nobody can tell which keys are good: what the server keeps of them cannot be read."""

    def __init__(self) -> None:
        super().__init__("the server cannot read its keys at the moment; its log says why")


class UnknownModel(Exception):
    """The request names a model that is not served here."""

    param = "model"

    def __init__(self, model: str, served: str) -> None:
        super().__init__(f"the model {model!r} is not served here; use {served!r}")


class EvidenceTooLong(Exception):
    """Not even the best passage fits the window together with the question and the answer."""

    def __init__(self, num_tokens: int, max_tokens: int, limit_tokens: int) -> None:
        self.num_tokens, self.max_tokens, self.limit_tokens = num_tokens, max_tokens, limit_tokens
        self.param: str | None = None
        super().__init__(
            f"question and best passage have {num_tokens} tokens and {max_tokens} more were asked for, but evidence, "
            f"question and answer share {limit_tokens} tokens; shorten the question or lower max_tokens"
        )


class FactsTooLong(EvidenceTooLong):
    """The facts that a request brings do not fit the window together with the question and the answer."""

    def __init__(self, param: str, num_tokens: int, max_tokens: int, limit_tokens: int) -> None:
        self.param = param
        Exception.__init__(
            self,
            f"question and {param} have {num_tokens} tokens and {max_tokens} more were asked for, but facts, question "
            f"and answer share {limit_tokens} tokens; send fewer or shorter facts, or lower max_tokens",
        )


class HostRefused(Exception):
    """Without a key the server answers this machine alone, and the request came by way of another name or site."""

    def __init__(self, header: str, value: str) -> None:
        super().__init__(
            f"the header {header} is {value!r}, but without an API key only localhost is served, so that no web page "
            "can reach the documents; use http://127.0.0.1, or make a key with `fano keys add NAME`"
        )


class BodyTooLarge(HTTPException):
    """More bytes came, or were announced, than may. An HTTPException so that body readers let it pass."""

    def __init__(self, what: str, limit: int, setting: str, unit: str = "bytes") -> None:
        message = f"{what} has more than {limit} {unit}; send less or raise {setting}"
        super().__init__(status_code=413, detail=message)

    def __str__(self) -> str:
        return self.detail


class BodyEncoded(Exception):
    """The body comes packed, as by gzip, and would be taken for what it is not."""

    def __init__(self, encoding: str) -> None:
        super().__init__(f"the header Content-Encoding is {encoding!r}, expected a body as it is; send it unpacked")


class StorageFull(Exception):
    """The disk has no room for what was sent."""

    def __init__(self) -> None:
        super().__init__("the server's disk is full; nothing of what was sent was kept")


class DeletionUnfinished(StorageFull):
    """The disk has no room for what deleting needs. ``is_begun`` is whether the document is unknown from now on."""

    def __init__(self, is_begun: bool) -> None:
        what = "not all of the document is off the disk yet" if is_begun else "nothing was deleted"
        Exception.__init__(self, f"the server's disk is full, and {what}; make room on it and delete it again")


class NotReady(Exception):
    """The server is up but its model and library do not stand yet."""

    retry_after_seconds = 2

    def __init__(self, reason: str) -> None:
        super().__init__(f"the server is not ready: {reason}")


class AnswerAborted(Exception):
    """The generation was ended before the answer was complete."""

    def __init__(self) -> None:
        super().__init__("the answer was cut off because the server is shutting down; send the request again")


class ReaderStalled(ModelError):
    """The client keeps the connection but takes nothing of its answer, which holds memory that others wait for."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"nothing of the answer was read for {seconds:g} seconds, so it was ended; read faster, or raise "
            "FANO_STALLED_READER_SECONDS"
        )


class ClientLeft(Exception):
    """The client closed the connection; the reply reaches nobody and the status is for the log."""

    def __init__(self) -> None:
        super().__init__("the client closed the connection")
