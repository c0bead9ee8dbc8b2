"""What an operator may decide: FANO_* variables, validated once, refused by name when they make no sense."""

import difflib
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from platformdirs import user_data_dir
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from model.policy import BLOCK_TOKENS
from model.tiles import MOST_SELECTED
from server.answers.form import BEST_FORM, AnswerStart

PREFIX = "FANO_"
# Where containers find their secrets: a file of a setting's name, FANO_API_KEY in any case, holds its value.
SECRETS_DIR = Path("/run/secrets")


class SettingsInvalid(Exception):
    """The settings cannot be used; the message names each variable, its value's fault and the remedy."""


class Settings(BaseSettings):
    """Everything that may be set. Bytes, seconds and tokens as the names say; None means "decide for me"."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    host: str = Field("127.0.0.1", description="Address to listen on; other than loopback only with a key.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data_dir: Path = Field(
        default_factory=lambda: Path(user_data_dir("fano", appauthor=False)),
        description="Where documents and indexes are kept.",
    )
    model: str | None = Field(None, description="Checkpoint directory or hub id; default is the embedded model.")

    api_key: SecretStr | None = Field(None, description="A key of tenant `default`, beside those of `fano keys`.")
    open_metrics: bool = Field(False, description="Serve /metrics, /v1/memory and the console without a key.")

    dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto", description="Type of weights and keys/values; int8 (weights, keys/values bfloat16) on a CPU only."
    )
    threads: int | None = Field(None, ge=1, le=1024, description="Threads of the matrix work; default all cores.")
    policy: Literal["full", "window", "archive"] | None = Field(
        None, description="Attention policy; default the checkpoint's."
    )
    sinks: int | None = Field(None, ge=0, description="Sink tokens under policies window and archive.")
    window: int | None = Field(None, ge=BLOCK_TOKENS, description="Window tokens under policies window and archive.")
    select: int | None = Field(
        None, ge=1, le=MOST_SELECTED, description="Blocks of 64 tokens that a token selects under policy archive."
    )
    max_context_tokens: int | None = Field(
        None, ge=BLOCK_TOKENS, description="Hard limit of prompt and answer; default 1048576 but under policy full."
    )
    max_whole_prompt_tokens: int = Field(
        100_000, ge=1, description="Most tokens of a prompt that are read for a reply that is not streamed."
    )
    max_sequences: int = Field(8, ge=1, le=4096, description="Requests that hold state at the same time.")
    max_queue: int = Field(64, ge=0, description="Requests that may wait; more are answered 429.")
    saved_bytes: int = Field(1 << 30, ge=0, description="Host memory for the state of requests that made room.")
    session_bytes: int = Field(1 << 30, ge=0, description="Host memory for what was read before, to read it once.")
    prompt_archive_bytes: int = Field(
        1 << 30, ge=0, description="Host memory for the text and index of prompts that are longer than the window."
    )
    archive_bytes: int = Field(
        2 << 30,
        ge=0,
        description="Host memory for what left the windows under policy archive, with the summaries of all of it.",
    )
    archive_disk_bytes: int = Field(
        8 << 30, ge=0, description="Disk for what of it does not fit there, in a file that ends with the process."
    )
    archive_index_blocks: int = Field(
        0,
        ge=0,
        le=65_536,
        description="Blocks of 64 tokens that share an index of FAISS under policy archive; 0: all are scanned.",
    )
    prompt_dense_rows: int = Field(
        512,
        ge=0,
        description="Most sentences of a long prompt that all get vectors; of more, those with words asked for.",
    )
    session_disk_bytes: int = Field(8 << 30, ge=0, description="Most bytes of all saved sessions on the disk.")
    checkpoint_slots: int = Field(
        16, ge=0, le=4096, description="States of what was read before that are kept on the device."
    )
    max_request_seconds: float | None = Field(
        None, gt=0, description="How long a request may wait and generate, then it ends with a 504; default no limit."
    )

    read_documents: bool = Field(
        True,
        description="Let the model read every document once, in the background, unless it is sent with read=false.",
    )
    information: bool = Field(
        False, description="Sum up the model's surprisal of all that is read; costs the head's work for each token."
    )
    surprises: bool = Field(
        True,
        description="Keep what surprises the model in the documents it reads as facts; costs the same.",
    )

    chat_max_tokens: int = Field(1024, ge=1, description="Most tokens of a chat reply that names no limit.")
    answer_max_tokens: int = Field(128, ge=1, description="Most tokens of an answer from documents that names none.")
    read_prompts: bool = Field(
        True, description="Read prompts longer than the window to their end where an answer does not start from it."
    )
    answer_start: Literal["fresh", "document"] = Field(
        AnswerStart.FRESH.value,
        description="Answers start with no memory, or with that of the one document asked, once it was read.",
    )
    prompt_start: Literal["auto", "fresh", "prompt"] = Field(
        "auto",
        description="Answers about prompts longer than the window start with no memory, or with all that was read; "
        "auto is the latter under policy archive alone.",
    )
    question_place: Literal["after", "both"] = Field(
        BEST_FORM.place.value, description="Where the question stands: after the passages, or before and after them."
    )
    retrieval_gate: Literal["auto", "always"] = Field(
        "auto",
        description="Spare turns of a chat that ask nothing of its documents the search, or search always.",
    )
    retrieval_certainty: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Also spare it turns whose words say nothing, if the model's probability of its answer without "
        "documents is as high; default search, for the embedded model is certain of the wrong things.",
    )
    max_passages: int = Field(5, ge=1, le=20, description="Passages that a question gets unless it says otherwise.")

    index_device: Literal["cpu", "gpu"] = Field(
        "cpu",
        description="Where the vectors of large documents are compared: clustered on the CPU, or all of them on a GPU, "
        "with the extra gpu installed.",
    )

    max_upload_bytes: int = Field(200_000_000, ge=1, description="Largest file taken, as sent.")
    max_text_characters: int = Field(20_000_000, ge=1, description="Longest text taken, in characters.")
    max_facts: int = Field(
        500_000, ge=0, description="Facts recognised in a document that are kept, the best scored; pins come on top."
    )
    max_request_bytes: int = Field(32_000_000, ge=1024, description="Largest JSON body of any other request.")

    keepalive_seconds: float = Field(10.0, gt=0, le=300, description="Silence after which a stream sends a comment.")
    stalled_reader_seconds: float = Field(
        60.0, gt=0, description="How long a client may take nothing of a stream that has filled up for it."
    )
    drain_seconds: float = Field(30.0, ge=0, description="How long running answers may take after SIGTERM.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    @field_validator("api_key")
    @classmethod
    def _not_empty(cls, value: SecretStr | None) -> SecretStr | None:
        # Of a variable this means "none"; an empty file is a mistake, and would be a key that everybody knows.
        if value is not None and not value.get_secret_value():
            raise ValueError("is empty; write a long random string into its file")
        return value

    @field_validator("sinks", "window")
    @classmethod
    def _whole_blocks(cls, value: int | None) -> int | None:
        if value is not None and value % BLOCK_TOKENS:
            raise ValueError(f"must be a multiple of {BLOCK_TOKENS} tokens")
        return value

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without port and brackets, is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_settings(
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    secrets_dir: Path = SECRETS_DIR,
) -> Settings:
    """Settings from the environment, ``overrides`` (without Nones) first and files in ``secrets_dir`` last.

    Raises ``SettingsInvalid``.
    """
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for key in sorted(environ):
        if key.upper().startswith(PREFIX) and key.upper() not in known:
            nearest = difflib.get_close_matches(key.upper(), sorted(known), n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(sorted(known))}"
            raise SettingsInvalid(f"{key} is not a setting; {hint}")
    try:
        given = {key: value for key, value in (overrides or {}).items() if value is not None}
        given["_secrets_dir"] = secrets_dir if secrets_dir.is_dir() else None
        return Settings(**given)
    except SettingsError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise SettingsInvalid(
            f"{error.__cause__.filename} cannot be read ({error.__cause__.strerror}); let the server's user read it"
        ) from None
    except ValidationError as invalid:
        raise SettingsInvalid("; ".join(_told(dict(error)) for error in invalid.errors())) from None


def _told(error: Mapping[str, Any]) -> str:
    """One validation error as a sentence; values of secrets are never shown."""
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return message
    name = str(error["loc"][0])
    value = "" if name == "api_key" else f" is {error['input']!r}:"
    return f"{PREFIX}{name.upper()}{value} {message}"
