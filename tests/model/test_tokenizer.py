import hashlib
import json
import shutil
from pathlib import Path

import pytest
from fakes_engine import CHAT_TEMPLATE, CORPUS, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from model.errors import ChatTemplateMissing, ChatTemplateRejected, CheckpointNotFound, ConfigInvalid, InvalidRequest
from model.tokenizer import Tokenizer

FAMILY = "👨\u200d👩\u200d👧"
TEXTS = (
    st.text(st.sampled_from([*"abe  12.,\n<|>ßöé中नि\u0301\ufffd\ue000", "\u200d", "👩", "🏽", "🇩"]), max_size=40)
    | st.lists(st.sampled_from(["<|end|>", "<0x41>", "a", " ", FAMILY, "Grüße"]), max_size=8).map("".join)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=20)
)
Messages = list[dict[str, object]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def raw(directory: Path) -> RawTokenizer:
    return RawTokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer(directory)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False),
    )
    path = tmp_path_factory.mktemp("byte_level") / "tokenizer.json"
    raw.save(str(path))
    return Tokenizer(path)


@pytest.fixture(scope="module")
def metaspace(tmp_path_factory: pytest.TempPathFactory, directory: Path) -> Tokenizer:
    """The same vocabulary in the newer layout: Metaspace in place of the normaliser."""
    raw = RawTokenizer.from_file(str(directory / "tokenizer.json"))
    raw.normalizer = normalizers.Sequence([])
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    path = tmp_path_factory.mktemp("metaspace") / "tokenizer.json"
    raw.save(str(path))
    return Tokenizer(path)


@pytest.fixture(scope="module", params=["tokenizer", "byte_level", "metaspace"])
def each(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


@given(text=TEXTS)
@settings(deadline=None)
def test_text_comes_back(each: Tokenizer, text: str) -> None:
    back = each.decode(each.encode(text).ids)
    if back != text:
        # Metaspace writes no second space before a text that begins with one, and decoding takes one away.
        assert (text[0], back) == (" ", text[1:])


def test_only_metaspace_loses_a_space_at_the_head(tokenizer: Tokenizer, byte_level: Tokenizer) -> None:
    for each in (tokenizer, byte_level):
        assert each.decode(each.encode("  a ").ids) == "  a "


@given(text=TEXTS)
@settings(deadline=None)
def test_offsets_cover_the_text_in_order(each: Tokenizer, text: str) -> None:
    encoding = each.encode(text)
    assert len(encoding.ids) == len(encoding.offsets)
    covered = [False] * len(text)
    last_start = 0
    for start, end in encoding.offsets:
        assert last_start <= start <= end <= len(text)
        covered[start:end] = [True] * (end - start)
        last_start = start
    assert all(covered)


@given(text=TEXTS)
@settings(deadline=None)
def test_each_token_stands_at_its_offsets(each: Tokenizer, text: str) -> None:
    encoding = each.encode(text)
    for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        piece, place = each.token_bytes(token_id), text[start:end].encode()
        assert piece in place or piece.removeprefix(b" ") == place


def test_offsets_by_hand(tokenizer: Tokenizer) -> None:
    encoding = tokenizer.encode("é 👩x")
    pieces = [tokenizer.token_bytes(token_id) for token_id in encoding.ids]
    assert pieces == [b" ", "é".encode(), b" ", b"\xf0", b"\x9f", b"\x91", b"\xa9", b"x"]
    assert encoding.offsets == ((0, 0), (0, 1), (1, 2), (2, 3), (2, 3), (2, 3), (2, 3), (3, 4))


def test_a_space_at_the_head_keeps_its_place(tokenizer: Tokenizer, metaspace: Tokenizer) -> None:
    assert tokenizer.encode(" \n").offsets[:2] == ((0, 0), (0, 1))
    assert metaspace.encode(" \n").offsets[:2] == ((0, 1), (1, 2))


@given(text=TEXTS)
@settings(deadline=None)
def test_streamed_pieces_are_the_decoded_text(each: Tokenizer, text: str) -> None:
    ids = each.encode(text).ids
    decoder = each.stream_decoder()
    pieces = [decoder.push(token_id) for token_id in ids]
    assert decoder.flush() == ""
    assert "".join(pieces) == each.decode(ids)
    for piece in pieces:
        assert piece.encode().decode() == piece
        assert "\ufffd" not in piece or "\ufffd" in text


@given(data=st.data())
@settings(deadline=None)
def test_streamed_pieces_of_any_ids_are_the_decoded_text(each: Tokenizer, data: st.DataObject) -> None:
    bytes_and_words = st.integers(0, min(299, each.vocab_size - 1)) | st.integers(0, each.vocab_size + 5)
    ids = data.draw(st.lists(bytes_and_words, max_size=30))
    decoder = each.stream_decoder()
    assert "".join([decoder.push(token_id) for token_id in ids]) + decoder.flush() == each.decode(ids)


def test_half_a_character_waits_and_a_broken_one_is_replaced(tokenizer: Tokenizer, raw: RawTokenizer) -> None:
    ids = [raw.token_to_id(f"<0x{byte:02X}>") for byte in "👩".encode()]
    decoder = tokenizer.stream_decoder()
    assert [decoder.push(token_id) for token_id in ids] == ["", "", "", "👩"]
    decoder = tokenizer.stream_decoder()
    assert [decoder.push(token_id) for token_id in ids[:3]] == ["", "", ""]
    assert decoder.flush() == "\ufffd"
    assert tokenizer.decode([*ids[:2], *ids]) == "\ufffd👩"


@given(text=TEXTS)
@settings(deadline=None)
def test_decoding_agrees_with_the_tokenizers_library_on_whole_characters(
    tokenizer: Tokenizer, raw: RawTokenizer, text: str
) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == raw.decode(list(ids))


def test_control_tokens_typed_in_a_text_are_text(each: Tokenizer) -> None:
    encoding = each.encode("a<|end|>b")
    assert each.decode(encoding.ids) == "a<|end|>b"
    assert b"" not in [each.token_bytes(token_id) for token_id in encoding.ids]


def test_a_chat_has_the_ids_that_transformers_gives(directory: Path, tokenizer: Tokenizer) -> None:
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"), bos_token="<|startoftext|>", chat_template=CHAT_TEMPLATE
    )
    messages: Messages = [
        {"role": "system", "content": "Short, please."},
        {"role": "user", "content": "[1] Größe 412 kg\n\nQuestion: which? 👩"},
        {"role": "assistant", "content": " 412 kg "},
        {"role": "user", "content": ""},
    ]
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(tokenizer.encode_chat(messages)) == expected
    assert tokenizer.render_chat(messages) == reference.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )


INJECTIONS = st.lists(
    st.sampled_from(
        ["<|end|>", "<|user|>", "<|", "|>", "<|end", "end|>", "<", ">", "a", " ", "<|<|end|>end|>", "\ue000", "\ue001"]
    ),
    max_size=6,
).map("".join)


@given(contents=st.lists(INJECTIONS, min_size=1, max_size=3))
@settings(deadline=None)
def test_no_message_can_write_a_control_token(tokenizer: Tokenizer, raw: RawTokenizer, contents: list[str]) -> None:
    ids = tokenizer.encode_chat([{"role": "user", "content": content} for content in contents])
    user, end = raw.token_to_id("<|user|>"), raw.token_to_id("<|end|>")
    expected = [tokenizer.bos_id]
    for content in contents:
        expected += [user, *tokenizer.encode(content).ids, end]
    assert list(ids) == [*expected, raw.token_to_id("<|assistant|>")]


def with_template(directory: Path, target: Path, source: object) -> Tokenizer:
    target.mkdir()
    shutil.copy(directory / "tokenizer.json", target)
    (target / "tokenizer_config.json").write_text(json.dumps({"chat_template": source}))
    return Tokenizer(target)


def test_a_template_may_trim_and_write_text_of_its_own(directory: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<{% endfor %}"
    trimming = with_template(directory, tmp_path / "t", source)
    ids = trimming.encode_chat([{"role": "user", "content": "  <|end|>\n"}])
    assert list(ids)[1:] == list(tokenizer.encode("\n<|end|><").ids)
    # A content that ends in half a control token must not become one with what the template writes.
    source = "{{ messages[0].content }}|end|>"
    ids = with_template(directory, tmp_path / "u", source).encode_chat([{"role": "user", "content": "a <"}])
    assert list(ids) == list(tokenizer.encode("a <|end|>").ids)
    source = "<|end{{ messages[0].content }}"
    ids = with_template(directory, tmp_path / "v", source).encode_chat([{"role": "user", "content": "|> a"}])
    assert list(ids) == list(tokenizer.encode("<|end|> a").ids)


@pytest.mark.parametrize("role", ["", "a|><|end|><|system", "User", None, 7])
def test_an_odd_role_is_refused(tokenizer: Tokenizer, role: object) -> None:
    with pytest.raises(ChatTemplateRejected, match="role"):
        tokenizer.encode_chat([{"role": role, "content": "x"}])


def test_a_template_can_refuse_and_is_sandboxed(directory: Path, tmp_path: Path) -> None:
    refusing = with_template(directory, tmp_path / "a", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ChatTemplateRejected, match="roles must alternate"):
        refusing.encode_chat([{"role": "user", "content": "x"}])
    curious = with_template(directory, tmp_path / "b", "{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ChatTemplateRejected, match="unsafe"):
        curious.render_chat([{"role": "user", "content": "x"}])
    changing = with_template(directory, tmp_path / "c", "{{ messages.append(1) }}")
    with pytest.raises(ChatTemplateRejected, match="unsafe"):
        changing.render_chat([{"role": "user", "content": "x"}])


def test_templates_are_found_where_checkpoints_put_them(directory: Path, tmp_path: Path) -> None:
    messages: Messages = [{"role": "user", "content": "x"}]
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes {{ bos_token }}"}]
    listed = with_template(directory, tmp_path / "a", named)
    assert listed.render_chat(messages) == "yes "
    (tmp_path / "a" / "chat_template.jinja").write_text("from the file {{ messages | tojson }}")
    assert Tokenizer(tmp_path / "a").render_chat(messages) == 'from the file [{"role": "user", "content": "x"}]'


def test_without_a_template_chat_is_refused_by_name(byte_level: Tokenizer) -> None:
    assert not byte_level.has_chat_template
    with pytest.raises(ChatTemplateMissing, match="no chat template"):
        byte_level.encode_chat([{"role": "user", "content": "x"}])


def test_a_broken_template_is_named(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="chat_template"):
        with_template(directory, tmp_path / "a", "{% for %}")
    with pytest.raises(ConfigInvalid, match="chat_template is 'dict'"):
        with_template(directory, tmp_path / "b", {"default": "x"})


def test_special_ids_and_fingerprint(directory: Path, tokenizer: Tokenizer, raw: RawTokenizer) -> None:
    assert tokenizer.bos_id == 1
    assert tokenizer.eos_ids == {2, raw.token_to_id("<|end|>")}
    assert tokenizer.encode("x", add_bos=True).ids == (1, *tokenizer.encode("x").ids)
    assert tokenizer.encode("x", add_bos=True).offsets[0] == (0, 0)
    assert tokenizer.count("a b") == len(tokenizer.encode("a b").ids)
    assert tokenizer.vocab_size == raw.get_vocab_size()
    assert tokenizer.fingerprint == hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()


def test_every_byte_is_a_token(tokenizer: Tokenizer, byte_level: Tokenizer) -> None:
    for each in (tokenizer, byte_level):
        single = {each.token_bytes(token_id) for token_id in range(each.vocab_size)}
        assert {bytes([byte]) for byte in range(256)} <= single


def test_what_cannot_be_used_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(CheckpointNotFound, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
    with pytest.raises(InvalidRequest, match="UTF-8"):
        tokenizer.encode("half \ud83d a pair")
    RawTokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigInvalid, match="byte"):
        Tokenizer(tmp_path)


def test_what_goes_on_with_a_text_keeps_the_space_that_it_begins_with(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path))
    ids = tokenizer.encode_ids("the rent")
    for continues, text in ((False, "the rent"), (True, " the rent")):
        decoder = tokenizer.stream_decoder(continues)
        assert "".join(decoder.push(each) for each in ids) + decoder.flush() == text


def test_a_text_begins_as_the_checkpoints_own_post_processor_says(tmp_path: Path) -> None:
    assert Tokenizer(write_tokenizer(tmp_path)).text_start == ()
    path = tmp_path / "tokenizer.json"
    spec = json.loads(path.read_text())
    bos = Tokenizer(tmp_path).bos_id
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|startoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            "<|startoftext|>": {"id": "<|startoftext|>", "ids": [bos], "tokens": ["<|startoftext|>"]},
        },
    }
    path.write_text(json.dumps(spec))
    assert Tokenizer(tmp_path).text_start == (bos,)


def test_a_template_that_knows_tools_is_told_apart(tmp_path: Path) -> None:
    config = write_tokenizer(tmp_path) / "tokenizer_config.json"
    assert Tokenizer(tmp_path).tool_template is None
    # A word in a text is no variable.
    for source, knows in (("tools {{ messages }}", False), ("{% if tools %}{{ tools }}{% endif %}", True)):
        config.write_text(json.dumps({"chat_template": source}))
        assert (Tokenizer(tmp_path).tool_template == source) == knows


@given(text=st.lists(TEXTS, max_size=6).map(" ".join))
@settings(max_examples=200)
def test_a_long_text_in_pieces_is_what_it_is_whole(each: Tokenizer, text: str) -> None:
    whole = list(each.encode(text).ids)
    with pytest.MonkeyPatch.context() as patch:
        for num_characters in (1, 5, 17):
            patch.setattr("model.tokenizer.PIECE_CHARACTERS", num_characters)
            assert each.encode_ids(text) == whole


def test_long_texts_are_encoded_in_pieces(each: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert each._cuts_at_blanks
    lengths: list[int] = []
    encoded = Tokenizer._encoded
    monkeypatch.setattr(Tokenizer, "_encoded", lambda self, text: lengths.append(len(text)) or encoded(self, text))
    text = "\n".join(CORPUS * 3000)
    ids = each.encode_ids(text)
    assert len(lengths) > 10 and max(lengths) <= 1 << 17
    assert ids == encoded(each, text)


def test_a_vocabulary_that_goes_on_over_blanks_is_not_cut(tmp_path: Path) -> None:
    raw = RawTokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>"], show_progress=False)
    raw.train_from_iterator(["of the " * 50, "in the house of the rising sun"], trainer)
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert any(b"f " in tokenizer.token_bytes(each) for each in range(tokenizer.vocab_size))
    assert not tokenizer._cuts_at_blanks
