"""Pages cut a list into pieces without loss; filters say what a plain evaluation says."""

import json
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from server.errors import RequestInvalid
from server.files.database import FilesDatabase, Window
from server.files.file_table import FileTable
from server.files.filters import parse_filter
from server.files.membership import Member, Membership
from server.files.nouns import FileStatus, NewFile
from server.files.store_table import StoreTable

TENANT, OTHER = "default", "other"
SLOW = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Shelf:
    """Tables with files of two tenants that came in turns, all of the first one's in a store."""

    def __init__(self, directory: Path, num_files: int) -> None:
        self.database = FilesDatabase(directory / "files.sqlite3")
        self.files = FileTable(self.database, directory / "blobs")
        self.stores = StoreTable(self.database)
        self.membership = Membership(self.database, self.files, self.stores)
        source = directory / "source"
        source.write_bytes(b"text")
        self.ids = []
        for number in range(num_files):
            new = NewFile(f"{number}.txt", ("assistants", "user_data")[number % 2], "text/plain", None, None)
            self.ids.append(self.files.add(TENANT, new, source).id)
            self.files.add(OTHER, new, source)
        self.store = self.stores.add(TENANT, "", None, {}, None)
        self.membership.add(TENANT, self.store, [Member(file_id, {}) for file_id in self.ids])
        for file_id in self.ids[::3]:
            self.membership.fail(file_id, "invalid_file", "it is locked")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path_factory.mktemp("shelf"), 23)
    yield shelf
    shelf.database.close()


ORDERS: Any = st.sampled_from(["asc", "desc"])


@SLOW
@given(limit=st.integers(1, 30), order=ORDERS, purpose=st.sampled_from([None, "assistants", "user_data"]))
def test_pages_forward_are_the_list(shelf: Shelf, limit: int, order: Any, purpose: str | None) -> None:
    expected = [
        file_id
        for number, file_id in enumerate(shelf.ids)
        if purpose in (None, ("assistants", "user_data")[number % 2])
    ]
    expected = expected if order == "asc" else expected[::-1]
    met: list[str] = []
    while True:
        window = Window(after=met[-1] if met else None, limit=limit, order=order)
        page, has_more = shelf.files.page(TENANT, window, purpose)
        met += [file.id for file in page]
        assert len(page) <= limit and has_more == (len(met) < len(expected))
        if not has_more:
            break
    assert met == expected


@SLOW
@given(
    limit=st.integers(1, 30), order=ORDERS, status=st.sampled_from([None, FileStatus.FAILED, FileStatus.IN_PROGRESS])
)
def test_pages_backward_are_the_list(shelf: Shelf, limit: int, order: Any, status: FileStatus | None) -> None:
    def is_met(number: int) -> bool:
        return status is None or (number % 3 == 0) == (status is FileStatus.FAILED)

    ordered = shelf.ids if order == "asc" else shelf.ids[::-1]
    expected = [file_id for file_id in ordered[:-1] if is_met(shelf.ids.index(file_id))]
    met: list[str] = []
    # From the last of all, whatever its own status: a cursor is a place and not a member.
    before = ordered[-1]
    while True:
        page, has_more = shelf.membership.page(
            TENANT, shelf.store, Window(before=before, limit=limit, order=order), status
        )
        met = [file.file_id for file in page] + met
        assert has_more == (len(met) < len(expected))
        if not has_more:
            break
        before = met[0]
    assert met == expected


@SLOW
@given(first=st.integers(0, 22), last=st.integers(0, 22), order=ORDERS, limit=st.integers(1, 30))
def test_between_two_places(shelf: Shelf, first: int, last: int, order: Any, limit: int) -> None:
    ordered = shelf.ids if order == "asc" else shelf.ids[::-1]
    window = Window(ordered[first], ordered[last], limit, order)
    page, has_more = shelf.membership.page(TENANT, shelf.store, window)
    between = ordered[first + 1 : last]
    assert [file.file_id for file in page] == between[:limit] and has_more == (len(between) > limit)


def test_a_place_outlives_what_stood_there(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, 6)
    for file_id in shelf.ids[1:4]:
        shelf.files.delete(TENANT, file_id)
    window = Window(after=shelf.ids[2], order="asc")
    assert [file.id for file in shelf.files.page(TENANT, window)[0]] == shelf.ids[4:]
    assert [file.file_id for file in shelf.membership.page(TENANT, shelf.store, window)[0]] == shelf.ids[4:]
    with pytest.raises(RequestInvalid):
        shelf.files.page(OTHER, window)
    shelf.database.now = lambda: 9e9
    shelf.files.forget_places()
    with pytest.raises(RequestInvalid):
        shelf.files.page(TENANT, window)
    shelf.database.close()


KEYS = st.sampled_from(["a", "b"])
NUMBERS = st.integers(-2, 2) | st.sampled_from([0.5, 1.0, -0.0, 1e300]) | st.just(10**400)
# Of these, some are equal in Python and not on the wire.
ALIKE: Any = st.sampled_from([0, 1, True, False, 1.0, "1", "True"])
SCALARS = ALIKE | NUMBERS | st.booleans() | st.sampled_from(["", "1", "a", "b", "Ä", "True"])
ATTRIBUTES = st.dictionaries(KEYS, SCALARS, max_size=3)
COMPARISONS = (
    st.fixed_dictionaries({"type": st.sampled_from(["eq", "ne"]), "key": KEYS, "value": SCALARS})
    | st.fixed_dictionaries(
        {
            "type": st.sampled_from(["gt", "gte", "lt", "lte"]),
            "key": KEYS,
            "value": NUMBERS | st.sampled_from(["", "a", "b"]),
        }
    )
    | st.fixed_dictionaries(
        {"type": st.sampled_from(["in", "nin"]), "key": KEYS, "value": st.lists(SCALARS, max_size=3)}
    )
)
FILTERS = st.recursive(
    COMPARISONS,
    lambda inner: st.fixed_dictionaries(
        {"type": st.sampled_from(["and", "or"]), "filters": st.lists(inner, min_size=1, max_size=3)}
    ),
    max_leaves=6,
)


def reference(filter_: Any, attributes: dict[str, Any]) -> bool:
    """As the documentation says it, one case after the other."""
    kind = filter_["type"]
    if kind == "and":
        return False not in [reference(each, attributes) for each in filter_["filters"]]
    if kind == "or":
        return True in [reference(each, attributes) for each in filter_["filters"]]
    if kind == "ne":
        return not reference(filter_ | {"type": "eq"}, attributes)
    if kind == "nin":
        return not reference(filter_ | {"type": "in"}, attributes)
    if filter_["key"] not in attributes:
        return False
    own = attributes[filter_["key"]]
    if kind == "in":
        return True in [reference(filter_ | {"type": "eq", "value": each}, attributes) for each in filter_["value"]]
    value = filter_["value"]
    kinds = [
        "bool" if each is True or each is False else "text" if isinstance(each, str) else "number"
        for each in (own, value)
    ]
    if kinds[0] != kinds[1]:
        return False
    if kind == "eq":
        return bool(own == value)
    return kinds[0] != "bool" and bool(getattr(operator, {"gte": "ge", "lte": "le"}.get(kind, kind))(own, value))


@settings(deadline=None, max_examples=500)
@given(filter_=FILTERS, attributes=ATTRIBUTES)
@example(filter_={"type": "eq", "key": "a", "value": 1}, attributes={"a": True})
@example(filter_={"type": "nin", "key": "a", "value": [False]}, attributes={"a": 0})
def test_a_filter_says_what_a_plain_evaluation_says(filter_: Any, attributes: dict[str, Any]) -> None:
    # Both come over the wire, and attributes go to the disk and back.
    filter_, attributes = json.loads(json.dumps(filter_)), json.loads(json.dumps(attributes))
    assert parse_filter(filter_).passes(attributes) == reference(filter_, attributes)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ([], "filters"),
        ({}, "filters.type"),
        ({"type": "eq", "key": "a"}, "filters.value"),
        ({"type": "eq", "key": "a", "value": 1, "more": 2}, "filters.more"),
        ({"type": "eq", "key": "", "value": 1}, "filters.key"),
        ({"type": "in", "key": "a", "value": 1}, "filters.value"),
        ({"type": "in", "key": "a", "value": [{}]}, "filters.value"),
        ({"type": "gt", "key": "a", "value": True}, "filters.value"),
        ({"type": "eq", "key": "a", "value": "\ud800"}, "filters.value"),
        ({"type": "and", "filters": []}, "filters.filters"),
        ({"type": "or", "filters": [{"type": "eq", "key": "a", "value": 1}], "key": "a"}, "filters.key"),
        ({"type": "or", "filters": [{"type": "like", "key": "a", "value": 1}]}, "filters.filters.0.type"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused_by_path(value: Any, param: str) -> None:
    with pytest.raises(RequestInvalid) as error:
        parse_filter(value)
    assert error.value.param == param


def test_a_filter_has_a_depth_and_a_breadth() -> None:
    leaf: Any = {"type": "eq", "key": "a", "value": 1}
    nested = leaf
    for _ in range(100_000):
        nested = {"type": "and", "filters": [nested]}
    for wide in (nested, {"type": "or", "filters": [leaf] * 65}):
        with pytest.raises(RequestInvalid):
            parse_filter(wide)
