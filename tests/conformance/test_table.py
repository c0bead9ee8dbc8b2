"""The section "Conformance" of docs/api.md says what these tests say."""

import pytest
from conformance.table import LEFT_OUT, PAGE, declared, helpers, section


def test_every_helper_is_told() -> None:
    """One that a later client brings is tested, or refused, or left out for a reason."""
    told = {**declared("covers"), **declared("refuses"), **LEFT_OUT}
    assert set(helpers()) - set(told) == set()
    assert not set(declared("covers")) & set(declared("refuses"))


def test_the_section_is_true() -> None:
    # A client of another version has other helpers; the page tells of the one that is pinned.
    if set(declared("covers")) - set(helpers()):
        pytest.skip("this client does not have all of the helpers")
    assert section() in PAGE.read_text(), "run `python tests/conformance/table.py`"
