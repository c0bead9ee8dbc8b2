"""Manifests: what was written comes back, and whatever was done to the file since is noticed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes_vault import PARTS
from hypothesis import given, settings
from hypothesis import strategies as st

from server.sessions import manifest as manifests
from server.sessions.errors import ManifestDamaged, ManifestTooNew
from server.sessions.manifest import RUN_TOKENS, BlockRun, Manifest, SavedCheckpoint, TokenRun, decode, key_of
from server.sessions.segments import SegmentRef

names = st.text(st.characters(codec="utf-8"), max_size=20)
tenants = names.map(lambda text: text.replace("\0", ""))
refs = st.builds(SegmentRef, st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(1, 1 << 50))
bits = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def any_manifest(draw: st.DrawFn) -> Manifest:
    num_tokens = draw(st.integers(0, 3 * RUN_TOKENS))
    lengths = [min(RUN_TOKENS, num_tokens - start) for start in range(0, num_tokens, RUN_TOKENS)]
    places = draw(st.sets(st.integers(1, num_tokens), max_size=3)) if num_tokens else set()
    version = draw(st.integers(1, 1 << 40))
    return Manifest(
        tenant=draw(tenants),
        name=draw(names),
        version=version,
        created_at=draw(st.floats(0, 1e12)),
        updated_at=draw(st.floats(0, 1e12)),
        fingerprint=draw(st.dictionaries(names, names, max_size=3)),
        num_tokens=num_tokens,
        token_runs=tuple(TokenRun(draw(refs), length) for length in lengths),
        documents=tuple(draw(st.lists(names, max_size=2))),
        prelude_tokens=draw(st.integers(0, num_tokens)),
        checkpoints=tuple(
            SavedCheckpoint(place, draw(bits), draw(refs), (BlockRun(draw(refs), (0,)),), 1, 2, 3)
            for place in sorted(places)
        ),
        saved_version=draw(st.none() | st.integers(1, version)),
    )


def example(**changes: Any) -> Manifest:
    ref = SegmentRef("ab" * 32, 5)
    checkpoint = SavedCheckpoint(70, 0.1 + 0.2, ref, (BlockRun(ref, (0, 1)),), 1, 2, 3)
    whole = Manifest("acme", "s", 3, 1.5, 2.5, PARTS, 100, (TokenRun(ref, 100),), ("doc_1",), 7, (checkpoint,), 2)
    return replace(whole, **changes)


def path_of(manifest: Manifest) -> Path:
    return Path(f"{manifest.key}.json")


def framed(number: int, body: bytes) -> bytes:
    """A file whose checksum is right, whatever its body says."""
    return b'{"format":%d,"checksum":"%s","body":%s}\n' % (number, manifests._checksum(number, body), body)


def body_of(manifest: Manifest) -> bytes:
    return manifests.FRAME.fullmatch(manifest.encode())[3]


@settings(max_examples=50, deadline=None)
@given(manifest=any_manifest())
def test_any_manifest_comes_back(manifest: Manifest) -> None:
    content = manifest.encode()
    back = decode(path_of(manifest), content)
    assert back == manifest and back.encode() == content and back.checksum == manifest.checksum
    assert json.loads(content)["body"]["name"] == manifest.name


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_altered_bit_and_no_cut_goes_unnoticed(data: st.DataObject) -> None:
    manifest = example()
    content = bytearray(manifest.encode())
    offset = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[offset] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[offset:]
    with pytest.raises(ManifestDamaged, match=manifest.key):
        decode(path_of(manifest), bytes(content))


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"\0" * 900, b'{"format":1,"checksum":"","body":{}}\n'])
def test_what_is_no_manifest_is_damaged(content: bytes) -> None:
    with pytest.raises(ManifestDamaged, match="torn or altered"):
        decode(path_of(example()), content)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"num_tokens":100,"token_runs"', b'"num_tokens":101,"token_runs"'),
        (b'"num_bytes":5', b'"num_bytes":0'),
        (b'"num_bytes":5', b'"num_bytes":5,"more":1'),
        (b'"version":3', b'"version":"3"'),
        (b'"version":3', b'"version":true'),
        (b'"version":3', b'"version":0'),
        (b'"saved_version":2', b'"saved_version":4'),
        (b'"saved_version":2', b'"saved_version":0'),
        (b'"blocks":[0,1]', b'"blocks":[0,16]'),
        (b'"blocks":[0,1]', b'"blocks":[1,0]'),
        (b'"blocks":[0,1]', b'"blocks":[]'),
        (b'"blocks":[0,1]', b'"blocks":[0,2]'),
        (b'"name":"abab', b'"name":"../b'),
        (b'"num_tokens":70', b'"num_tokens":170'),
        (b'"prelude_tokens":7', b'"prelude_tokens":101'),
        (b'"documents":["doc_1"],', b""),
        (b'"ssm_bytes":1', b'"ssm_bytes":-1'),
    ],
)
def test_what_contradicts_itself_is_damaged_even_with_a_right_checksum(old: bytes, new: bytes) -> None:
    body = body_of(example())
    assert decode(path_of(example()), framed(1, body)) == example() and old in body
    with pytest.raises(ManifestDamaged, match="is no manifest of format 1"):
        decode(path_of(example()), framed(1, body.replace(old, new, 1)))


def test_the_manifest_of_another_session_is_not_taken() -> None:
    with pytest.raises(ManifestDamaged, match="another session"):
        decode(path_of(example(name="t")), example().encode())
    with pytest.raises(ManifestDamaged, match="another session"):
        decode(path_of(example(tenant="other")), example().encode())


def test_a_later_format_is_refused_by_name_and_an_altered_number_is_damage() -> None:
    with pytest.raises(ManifestTooNew, match="format 2, and this version reads up to 1"):
        decode(path_of(example()), framed(2, b'{"anything":[]}'))
    with pytest.raises(ManifestDamaged):
        decode(path_of(example()), example().encode().replace(b'"format":1', b'"format":2'))


def test_an_earlier_format_is_migrated_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    old = example()
    monkeypatch.setattr(manifests, "FORMAT", 3)
    steps = {
        1: lambda body: body | {"documents": [*body["documents"], "two"]},
        2: lambda body: body | {"documents": [*body["documents"], "three"]},
    }
    monkeypatch.setattr(manifests, "MIGRATIONS", steps)
    assert decode(path_of(old), framed(1, body_of(old))).documents == ("doc_1", "two", "three")
    assert decode(path_of(old), framed(2, body_of(old))).documents == ("doc_1", "three")
    monkeypatch.setattr(manifests, "MIGRATIONS", {2: steps[2]})
    with pytest.raises(ManifestDamaged):
        decode(path_of(old), framed(1, body_of(old)))


def test_the_checksum_is_of_fingerprint_tokens_and_saved_state_alone() -> None:
    other = SegmentRef("cd" * 32, 5)
    same = [{"name": "t"}, {"version": 9}, {"updated_at": 9.0}, {"documents": ()}, {"prelude_tokens": 0}]
    (checkpoint,) = example().checkpoints
    differing = [
        {"fingerprint": PARTS | {"dtype": "bfloat16"}},
        {"token_runs": (TokenRun(other, 100),)},
        {"checkpoints": ()},
        {"checkpoints": (replace(checkpoint, state=other),)},
        {"checkpoints": (replace(checkpoint, num_tokens=71),)},
        {"checkpoints": (replace(checkpoint, block_runs=()),)},
    ]
    assert {example(**change).checksum for change in same} == {example().checksum}
    assert len({example().checksum, *(example(**change).checksum for change in differing)}) == 1 + len(differing)


def test_keys_cannot_be_made_to_collide() -> None:
    assert key_of("a", "b\0c") != key_of("a", "bc") and key_of("ab", "") != key_of("a", "b")
    with pytest.raises(ValueError, match="NUL"):
        key_of("a\0b", "c")
    with pytest.raises(UnicodeEncodeError):
        key_of("a", "\ud800")
