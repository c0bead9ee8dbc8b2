"""How texts are cut for vector stores, as far as a client may decide it."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from server.errors import RequestInvalid, invalid_fields
from server.files.schemas import AutoChunking


def check_chunking(strategy: Mapping[str, Any] | None, path: str = "chunking_strategy") -> None:
    """Raise ``RequestInvalid`` for any strategy but ``auto``.

    A document is cut once, between sentences, for everyone who asks it; its passages are put together from that for
    each question. Pieces of a fixed number of tokens would be another index of the same text.
    """
    if strategy is None:
        return
    if strategy.get("type") == "static":
        raise RequestInvalid(
            f"{path}.type is 'static', but texts are cut between sentences here, the same for every store, and "
            "passages are put together for each question; leave chunking_strategy out, or send {'type': 'auto'}",
            f"{path}.type",
            "unsupported_value",
        )
    try:
        AutoChunking.model_validate(dict(strategy))
    except ValidationError as error:
        located = [{**each, "loc": ("body", *path.split("."), *each["loc"])} for each in error.errors()]
        raise invalid_fields(located, "application/json") from None
