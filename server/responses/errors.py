"""Why a request about a stored response is refused, each with what the client can do."""


class ResponsesError(Exception):
    """Root of the refusals of this package; ``param`` is the path of the field to blame, if there is one."""

    param: str | None = None


class UnknownResponse(ResponsesError):
    """No stored response of this tenant has the id."""

    def __init__(self, response_id: str, param: str | None = None) -> None:
        super().__init__(
            f"no stored response has the id {response_id!r}: it was deleted, is too old, or was made with store: false"
        )
        self.response_id = response_id
        self.param = param


class ResponseFailed(ResponsesError):
    """A response that failed, or was cancelled, said nothing that a conversation could go on from."""

    param = "previous_response_id"

    def __init__(self, response_id: str, status: str) -> None:
        told = "was cancelled" if status == "cancelled" else "failed"
        super().__init__(f"the response {response_id!r} {told}; go on from the one before it")


class ResponseUnderWay(ResponsesError):
    """A response that is still made in the background cannot be gone on from yet."""

    param = "previous_response_id"

    def __init__(self, response_id: str) -> None:
        super().__init__(f"the response {response_id!r} is still being made; go on from it when its status says so")


class NotCancellable(ResponsesError):
    """A response that is not made in the background has ended before anyone knows its id for sure."""

    param = "response_id"

    def __init__(self) -> None:
        super().__init__("Cannot cancel a synchronous response: it has ended; close the connection to end one earlier")


class ResponseNotStored(ResponsesError):
    """The disk has no room for a change of the stored responses."""

    def __init__(self) -> None:
        super().__init__("the server's disk is full and nothing was stored or deleted; make room, or send store: false")
