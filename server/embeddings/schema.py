"""The embeddings request of OpenAI's schema, and what becomes of each of its fields."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from server.chat.fields import HONOURED, ChatField, Treatment, without_idle_fields
from server.errors import RequestInvalid
from server.schemas import Text, WireModel

# OpenAI's bound. Beside it stands one on all tokens together, which is what takes the time.
MAX_INPUTS = 2048

EMBEDDING_FIELDS: Mapping[str, ChatField] = {
    "input": HONOURED,
    "model": HONOURED,
    "dimensions": ChatField(Treatment.HONOURED, "only the width that the model has; a vector is never cut"),
    "encoding_format": HONOURED,
    "user": ChatField(Treatment.NEUTRAL, "names the user to a provider"),
}


def _as_texts(given: object) -> object:
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list):
        raise ValueError("should be a text or a list of texts")
    if any(isinstance(each, int | list) for each in given):
        # The ids that clients send by default are those of OpenAI's vocabulary, and would mean something else here.
        raise RequestInvalid(
            "input holds token ids, which are those of another model's vocabulary; send the text itself "
            "(with LangChain: check_embedding_ctx_length=False)",
            "input",
        )
    if "" in given:
        raise RequestInvalid("input holds a text that is empty; leave it out", f"input.{given.index('')}")
    return given


Texts = Annotated[
    list[Text],
    Field(min_length=1, max_length=MAX_INPUTS),
    BeforeValidator(_as_texts),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": MAX_INPUTS}]}
    ),
]


class EmbeddingRequest(WireModel):
    """One text or several to be turned into vectors."""

    input: Texts
    model: Text
    dimensions: Annotated[int, Field(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] = "float"

    @model_validator(mode="before")
    @classmethod
    def _sort_out(cls, data: object) -> object:
        return without_idle_fields(data, EMBEDDING_FIELDS) if isinstance(data, dict) else data
