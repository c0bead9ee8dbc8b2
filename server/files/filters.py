"""Filters on the attributes of files: what they look like, and which files pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, ValidationError

from server.errors import RequestInvalid
from server.files.nouns import Attributes, AttributeValue
from server.invalid_fields import invalid_fields
from server.schemas import Text, WireModel

# Nested deeper, or wider, a filter is no question about sixteen attributes any more.
MOST_DEPTH = 8
MOST_FILTERS = 64
MOST_VALUES = 1000

Scalar = StrictBool | int | float | Text


class Comparison(WireModel):
    """An attribute compared with a value, or for ``in`` and ``nin`` with several.

    Numbers, texts and booleans are never equal to each other, and only two numbers or two texts (by code point) have
    an order. A file without the attribute passes ``ne`` and ``nin`` alone.
    """

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
    key: Annotated[Text, Field(min_length=1, max_length=64)]
    value: Scalar | list[Scalar]

    def passes(self, attributes: Attributes) -> bool:
        """Whether a file with these attributes passes."""
        present = self.key in attributes
        own = attributes.get(self.key, "")
        if isinstance(self.value, list):
            is_among = present and any(_equal(own, each) for each in self.value)
            return is_among == (self.type == "in")
        if self.type in ("eq", "ne"):
            return (present and _equal(own, self.value)) == (self.type == "eq")
        return present and _ordered(self.type, own, self.value)


@dataclass(frozen=True, slots=True)
class Compound:
    """Several filters of which all (``and``) or at least one (``or``) must let a file pass."""

    type: Literal["and", "or"]
    filters: "tuple[Filter, ...]"

    def passes(self, attributes: Attributes) -> bool:
        """Whether a file with these attributes passes."""
        passed = (each.passes(attributes) for each in self.filters)
        return all(passed) if self.type == "and" else any(passed)


Filter = Comparison | Compound


def parse_filter(value: object, path: str = "filters", depth: int = 1) -> Filter:
    """The filter that ``value``, as parsed from JSON, spells. Raises ``RequestInvalid`` with the path of the field to
    blame."""
    if not isinstance(value, Mapping):
        raise RequestInvalid(f"{path} must be an object with type, and key and value or filters", path)
    kind = value.get("type")
    if kind not in ("and", "or"):
        return _comparison(value, path)
    if depth > MOST_DEPTH:
        raise RequestInvalid(f"{path} is nested deeper than {MOST_DEPTH} filters; spell it flatter", path)
    others = sorted(map(str, set(value) - {"type", "filters"}))
    if others:
        raise RequestInvalid(f"{path}.{others[0]} is not a field of a filter {kind!r}; leave it out",
                             f"{path}.{others[0]}", "unknown_field")  # fmt: skip
    inner = value.get("filters")
    if not isinstance(inner, list) or not 1 <= len(inner) <= MOST_FILTERS:
        raise RequestInvalid(f"{path}.filters must be an array of 1 to {MOST_FILTERS} filters", f"{path}.filters")
    return Compound(kind, tuple(parse_filter(each, f"{path}.filters.{n}", depth + 1) for n, each in enumerate(inner)))


def _comparison(value: Mapping[Any, Any], path: str) -> Comparison:
    if "value" in value and (wrong := _wrong(value.get("type"), value["value"])) is not None:
        raise RequestInvalid(f"{path}.value {wrong}", f"{path}.value")
    try:
        return Comparison.model_validate(dict(value))
    except ValidationError as error:
        located = [{**each, "loc": ("body", *path.split("."), *each["loc"][:1])} for each in error.errors()]
        raise invalid_fields(located, "application/json") from None


def _wrong(kind: object, value: object) -> str | None:
    """What is wrong with the value of a comparison; None if nothing is."""
    if kind in ("in", "nin"):
        if not isinstance(value, list) or len(value) > MOST_VALUES or not all(map(_is_scalar, value)):
            return f"must be an array of at most {MOST_VALUES} texts, numbers and booleans where the type is {kind!r}"
    elif not _is_scalar(value):
        return "must be a text, a number or a boolean; for several values use the type 'in'"
    elif isinstance(value, bool) and kind not in ("eq", "ne"):
        return f"must be a text or a number where the type is {kind!r}: booleans have no order"
    return None


def _is_scalar(value: object) -> bool:
    return isinstance(value, bool | int | float | str)


def passes(filter_: Filter | None, attributes: Attributes) -> bool:
    """Whether a file with these attributes passes the filter, if there is one."""
    return filter_ is None or filter_.passes(attributes)


def _equal(own: AttributeValue, value: AttributeValue) -> bool:
    # Python takes True for 1.
    return _kind(own) is _kind(value) and own == value


def _ordered(kind: str, own: AttributeValue, value: AttributeValue) -> bool:
    if _kind(own) is not _kind(value) or isinstance(own, bool):
        return False
    # Of one kind, which is what the comparison cannot see.
    is_less, is_equal = own < value, own == value  # type: ignore[operator]
    return {"lt": is_less, "lte": is_less or is_equal, "gt": not is_less and not is_equal, "gte": not is_less}[kind]


def _kind(value: AttributeValue) -> type:
    return bool if isinstance(value, bool) else str if isinstance(value, str) else float
