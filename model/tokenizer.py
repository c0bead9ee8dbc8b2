"""Text to token ids and back, with the place of each token in the text.

Reads the ``tokenizer.json`` of a checkpoint. Decoding is defined on bytes: the bytes of the tokens
one after another, read as UTF-8. So a stream gives the same text as a whole answer, and the
verbatim automaton works on the same bytes as the decoder.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from model.chat_template import ChatTemplate, read_chat_template
from model.errors import ChatTemplateMissing, ChatTemplateRejected, CheckpointNotFound, ConfigInvalid, InvalidRequest

ROLE = re.compile(r"[a-z][a-z_-]*")
SPACE_MARK = "\u2581"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Of a longer text the encoder's own notes, some three hundred bytes a token, would be held all at once.
PIECE_CHARACTERS = 1 << 17
# A text in which pieces begin and end with all kinds of characters.
PROBE = 'The cat\'s 12 dogs, (3.5 kg each) said: "Öl, naïve über 中文 🜁" -- x_y = f(a[0]);\ttwice  or\n so <|end|> end'
PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))


@dataclass(frozen=True, slots=True)
class Encoding:
    """Token ids and, for each, its half-open range of code points in the text.

    Tokens that share one character (byte fallback) all have that character's range; the space
    that Llama-style tokenizers put before a text has the empty range (0, 0).
    """

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


class Tokenizer:
    """The tokenizer of a checkpoint directory, or of a ``tokenizer.json``. Immutable, safe to share between threads.

    Raises ``CheckpointNotFound`` without such a file and ``ConfigInvalid`` for one whose tokens
    are neither Llama-style (``▁`` and byte fallback) nor byte-level.
    """

    def __init__(self, path: Path | str) -> None:
        file = Path(path)
        file = file if file.suffix == ".json" else file / "tokenizer.json"
        if not file.is_file():
            raise CheckpointNotFound(f"no tokenizer.json at {str(file)!r}; the checkpoint needs one")
        raw = file.read_bytes()
        directory = file.parent
        settings = _read_json(directory / "tokenizer_config.json")
        spec = json.loads(raw)
        self.fingerprint: str = hashlib.sha256(raw).hexdigest()
        self._directory = directory
        self._tokenizer = tokenizers.Tokenizer.from_str(raw.decode("utf-8"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Text is text: what looks like a control token in it is never one. Templates get theirs in encode_chat.
        self._tokenizer.encode_special_tokens = True
        self._control_ids: dict[str, int] = {
            token["content"]: token["id"] for token in spec["added_tokens"] if token["special"]
        }
        self._control_names = {token_id: name for name, token_id in self._control_ids.items()}
        self._style = _TokenStyle(spec)
        self._token_bytes = self._style.vocabulary_bytes(self._tokenizer, set(self._control_ids.values()))
        named = {name: _token_text(settings.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        self.bos_id: int | None = self._control_ids.get(named["bos_token"])
        self.eos_ids: frozenset[int] = _eos_ids(directory, self._control_ids.get(named["eos_token"]))
        source = read_chat_template(directory, settings)
        self._template = None if source is None else ChatTemplate(source, named)
        self._cuts_at_blanks = self._knows_words()
        # What the checkpoint's own post-processor writes before every text.
        self._begins_with_bos = self.bos_id is not None and self._tokenizer.encode("a").ids[:1] == [self.bos_id]

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added ones included."""
        return len(self._token_bytes)

    @property
    def text_start(self) -> tuple[int, ...]:
        """The tokens that the checkpoint wants before a text that is no chat: its BOS, or none."""
        return (self.bos_id,) if self.bos_id is not None and self._begins_with_bos else ()

    @property
    def has_chat_template(self) -> bool:
        """Whether ``encode_chat`` can work."""
        return self._template is not None

    @property
    def tool_template(self) -> str | None:
        """The source of a chat template that tells the model of functions it may call; None where it does not."""
        return self._template.source if self._template is not None and self._template.uses_tools else None

    @property
    def adds_leading_space(self) -> bool:
        """Whether a text is encoded with a space before it, which decoding takes away again."""
        return self._style.strips_leading_space

    def encode(self, text: str, add_bos: bool = False) -> Encoding:
        """Encode plain text. Raises ``InvalidRequest`` for text that UTF-8 cannot carry (lone surrogates)."""
        _check_carried(text)
        # Unlike encode, a batch lets other threads run meanwhile: a long text must not stop a whole server.
        encoded = self._tokenizer.encode_batch([text], add_special_tokens=False)[0]
        ids, offsets = encoded.ids, encoded.offsets
        if ids and self._style.is_lone_prefix(self._tokenizer.id_to_token(ids[0]), text):
            offsets[0] = (0, 0)
        if add_bos and self.bos_id is not None:
            ids, offsets = [self.bos_id, *ids], [(0, 0), *offsets]
        return Encoding(tuple(ids), tuple(offsets))

    def encode_ids(self, text: str) -> list[int]:
        """The ids that ``encode`` gives, without their places. Raises as ``encode`` does.

        A long text is encoded piece by piece where that gives the same, which takes no more memory than the ids.
        """
        _check_carried(text)
        if not self._cuts_at_blanks or len(text) <= PIECE_CHARACTERS:
            return self._encoded(text)
        ids: list[int] = []
        start = 0
        while (cut := _last_blank(text, start, start + PIECE_CHARACTERS)) is not None:
            ids += self._encoded(text[start:cut])
            start = cut + 1 if self.adds_leading_space else cut
        return ids + self._encoded(text[start:])

    def _encoded(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def _knows_words(self) -> bool:
        """Whether a text may be cut at any blank between two characters that are none: no token goes on over one, and
        the pieces of a text come to what the whole does."""
        if any(re.search(rb"[^\s] ", token) for token in self._token_bytes):
            return False
        whole = self._encoded(PROBE)
        cuts = [at for at in range(1, len(PROBE)) if _last_blank(PROBE, 0, at + 1) == at]
        first = 1 if self.adds_leading_space else 0
        return all(self._encoded(PROBE[:cut]) + self._encoded(PROBE[cut + first :]) == whole for cut in cuts)

    def count(self, text: str) -> int:
        """Number of tokens of a plain text."""
        return len(self.encode_ids(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the tokens; control tokens have none, bytes that are no UTF-8 become U+FFFD."""
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")
        return text[1:] if self._style.strips_leading_space and text.startswith(" ") else text

    def stream_decoder(self, continues: bool = False) -> "StreamDecoder":
        """A decoder that is fed one token at a time; of a text that ``continues`` another no space is taken away."""
        return StreamDecoder(self, continues)

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to the text, as UTF-8 bytes, perhaps half a character; empty for a control token."""
        # A model's vocabulary may be padded beyond the tokenizer's.
        return self._token_bytes[token_id] if token_id < len(self._token_bytes) else b""

    def control_token(self, token_id: int) -> str | None:
        """The name of a control token, such as ``<|endoftext|>``; None for any other."""
        return self._control_names.get(token_id)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> str:
        """The prompt as text, for people to read. Raises ``ChatTemplateMissing`` or ``ChatTemplateRejected``."""
        if self._template is None:
            raise ChatTemplateMissing(self._directory)
        return self._template.render(messages, add_generation_prompt, tools)

    def encode_chat(
        self, messages: Sequence[Mapping[str, object]], add_generation_prompt: bool = True
    ) -> tuple[int, ...]:
        """The prompt as token ids: those of ``chat_parts``. Raises what that raises."""
        ids: list[int] = []
        for part in self.chat_parts(messages, add_generation_prompt):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids.extend(self.encode_ids(part))
        return tuple(ids)

    def chat_parts(
        self,
        messages: Sequence[Mapping[str, object]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> tuple[int | str, ...]:
        """The prompt as the template wrote it: ids of control tokens, and the texts between them, none empty.

        A control token typed inside a message stays text. Each such text is one stand-in character while the template
        runs, so that only what the template itself wrote is found as control tokens; the text is then put back.
        Raises what ``render_chat`` raises; a text may be one that ``encode`` refuses.
        """
        stand_ins = _StandIns(self._control_ids, json.dumps([messages, tools], ensure_ascii=False, default=str))
        hidden = [stand_ins.hide_message(message) for message in messages]
        prompt = self.render_chat(hidden, add_generation_prompt, [stand_ins.hide_tool(tool) for tool in tools or ()])
        parts: list[int | str] = []
        # Splitting by a group puts the control tokens at the odd places.
        for place, part in enumerate(stand_ins.control_pattern.split(prompt)):
            if place % 2:
                parts.append(self._control_ids[part])
            elif text := stand_ins.restore(part):
                parts.append(text)
        return tuple(parts)


class StreamDecoder:
    """Text of a growing sequence of tokens: the pieces together equal ``Tokenizer.decode`` of the ids.

    No piece ends inside a character; bytes wait until theirs is whole.
    """

    def __init__(self, tokenizer: Tokenizer, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip_next = tokenizer.adds_leading_space and not continues

    def push(self, token_id: int) -> str:
        """Text that became safe to show with this token."""
        return self._strip(self._utf8.decode(self._tokenizer.token_bytes(token_id)))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never finished, or nothing."""
        return self._strip(self._utf8.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        if not text or not self._strip_next:
            return text
        self._strip_next = False
        return text.removeprefix(" ")


class _StandIns:
    """Private-use characters, absent from ``text``, in place of the control tokens typed in it."""

    def __init__(self, control_tokens: Iterable[str], text: str) -> None:
        used = set(text)
        unused = (chr(code) for codes in PRIVATE_USE for code in codes if chr(code) not in used)
        self._border = next(unused)
        self._of_token = {token: next(unused) for token in control_tokens}
        self._restored = str.maketrans({character: token for token, character in self._of_token.items()})
        self._restored[ord(self._border)] = ""
        longest_first = sorted(self._of_token, key=len, reverse=True)
        self.control_pattern = re.compile(
            "(" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else "(?!)"
        )

    def hide_message(self, message: Mapping[str, object]) -> dict[str, object]:
        """The message with no control token in any of its texts. Raises ``ChatTemplateRejected`` for an odd role."""
        role = message.get("role")
        # Templates write the role into a control token, where anything but a plain word could forge others.
        if not isinstance(role, str) or not ROLE.fullmatch(role):
            raise ChatTemplateRejected(f"the role {role!r} is not a word such as 'user'")
        return {key: value if key == "role" else self._hide(value) for key, value in message.items()}

    def hide_tool(self, tool: Mapping[str, object]) -> dict[str, object]:
        """A tool with no control token in any of its texts."""
        return {key: self._hide(value) for key, value in tool.items()}

    def restore(self, text: str) -> str:
        """The text as it was typed."""
        return text.translate(self._restored)

    def _hide(self, value: object) -> object:
        if isinstance(value, str):
            text = self.control_pattern.sub(lambda match: self._of_token[match[0]], value)
            # Half a control token at either end could be completed by what the template writes beside it.
            if any(text.endswith(token[:length]) for token in self._of_token for length in range(1, len(token))):
                text += self._border
            if any(text.startswith(token[length:]) for token in self._of_token for length in range(1, len(token))):
                text = self._border + text
            return text
        if isinstance(value, Mapping):
            return {key: self._hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._hide(item) for item in value]
        return value


class _TokenStyle:
    """How this vocabulary writes bytes and spaces, as ``tokenizer.json`` says."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        kinds = {part["type"]: part for part in _parts(spec, "decoder") + _parts(spec, "normalizer", "pre_tokenizer")}
        decoders = {part["type"]: part for part in _parts(spec, "decoder")}
        self.is_byte_level = "ByteLevel" in decoders
        if not self.is_byte_level and not spec["model"].get("byte_fallback", False):
            raise ConfigInvalid(
                "tokenizer.json",
                sorted(decoders),
                "a byte-level or byte-fallback vocabulary",
                "convert the checkpoint's tokenizer",
            )
        # The old layout writes the space with Prepend always, the new one with Metaspace where none stands.
        self._prepends_always = "Prepend" in kinds
        metaspace = kinds.get("Metaspace", {})
        self._prepends_if_missing = metaspace.get("prepend_scheme", "never") != "never"
        strip = decoders.get("Strip", {})
        self.strips_leading_space: bool = self._prepends_if_missing or (
            strip.get("content") == " " and strip.get("start", 0) > 0
        )

    def is_lone_prefix(self, token: str | None, text: str) -> bool:
        """Whether the first token is nothing but the space written before the text."""
        if token != SPACE_MARK:
            return False
        return self._prepends_always or (self._prepends_if_missing and text[0] not in (" ", SPACE_MARK))

    def vocabulary_bytes(self, tokenizer: tokenizers.Tokenizer, control_ids: set[int]) -> tuple[bytes, ...]:
        """Bytes of every token by id."""
        table = [b""] * (max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1)
        byte_of = _byte_level_alphabet() if self.is_byte_level else {}
        added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
            if token_id in control_ids:
                continue
            if token in added:
                table[token_id] = token.encode("utf-8")
            elif self.is_byte_level:
                table[token_id] = bytes(byte_of[character] for character in token)
            elif match := BYTE_TOKEN.fullmatch(token):
                table[token_id] = bytes([int(match[1], 16)])
            else:
                table[token_id] = token.replace(SPACE_MARK, " ").encode("utf-8")
        return tuple(table)


def _last_blank(text: str, start: int, end: int) -> int | None:
    """The last blank of ``text[start:end]`` between two characters that are none; None where that is no whole piece or
    has none."""
    place = min(end, len(text) - 1) if end < len(text) else -1
    while place > start:
        place = text.rfind(" ", start + 1, place)
        if place < 0:
            return None
        if not text[place - 1].isspace() and not text[place + 1].isspace():
            return place
    return None


def _check_carried(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest("text", text[error.start : error.end], "text that UTF-8 can carry") from error


def _parts(spec: Mapping[str, Any], *keys: str) -> list[Mapping[str, Any]]:
    """The steps of a pipeline of ``tokenizer.json``, sequences unrolled."""
    found: list[Mapping[str, Any]] = []
    for key in keys:
        part = spec.get(key)
        if part is None:
            continue
        for inner in ("decoders", "normalizers", "pretokenizers"):
            if inner in part:
                found += [step for item in part[inner] for step in _parts({"step": item}, "step")]
        found.append(part)
    return found


def _byte_level_alphabet() -> dict[str, int]:
    """The printable stand-ins of GPT-2's byte-level vocabulary: bytes that print stand for themselves."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printing}
    others = (byte for byte in range(256) if byte not in set(printing))
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(others)}


def _eos_ids(directory: Path, named: int | None) -> frozenset[int]:
    """Every id that the checkpoint's files call an end of text."""
    found = set() if named is None else {named}
    for name in ("generation_config.json", "config.json"):
        value = _read_json(directory / name).get("eos_token_id")
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(found)


def _token_text(value: object) -> str:
    if isinstance(value, Mapping):
        return str(value.get("content", ""))
    return value if isinstance(value, str) else ""


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data
