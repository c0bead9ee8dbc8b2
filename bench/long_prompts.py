"""An ordinary chat call with a million pasted tokens: what it finds, what it holds, what a second call reads again.

    python -m bench.long_prompts                              a million tokens of made-up prose
    python -m bench.long_prompts --text BOOKS/*.txt           of real prose
    python -m bench.long_prompts --short                      eight thousand: asserts what must hold, claims no time

Through the official client against a server with the embedded model: a short prompt; a long one with a needle in its
middle, whose answer starts fresh while the text is read beside it, as is the default; the same with an answer that
starts from what was read, left while that is going on; the same again, which goes on from what was read, to its answer;
the same once more; and, fresh, another question of the same text. Each with the progress that the stream told, resident
and archive bytes as ``usage.fano`` bills them, and the process as ``/v1/memory`` does. Prints a table and a JSON line.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import openai
from openai.types.chat import ChatCompletionChunk

from bench.peers import Child
from bench.recall.tasks import made_up_prose
from bench.throughput import describe_machine

NEEDLE = "The registration number of the blue harbour crane is QX-4471-ZK."
QUESTION = "What is the registration number of the blue harbour crane?"
OTHER_QUESTION = "Which registration number does the crane in the harbour have?"
VALUE = "QX-4471-ZK"
# Of English prose and of made-up words, with the embedded tokenizer; a little more than there are.
CHARACTERS_PER_TOKEN = {True: 4.45, False: 2.3}


@dataclass
class Call:
    """One call: what its stream told, and what it cost. ``peak_rss_bytes`` is the most seen while it ran."""

    what: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    first_byte_seconds: float = 0.0
    first_token_seconds: float | None = None
    total_seconds: float = 0.0
    num_progress: int = 0
    first_processed: int | None = None
    last_processed: int | None = None
    resident_bytes: int = 0
    archive_bytes: dict[str, int] = field(default_factory=dict)
    retrieval_seconds: float = 0.0
    peak_rss_bytes: int = 0
    held_device_bytes: int = 0
    answer: str = ""
    quotes: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Whether the answer has the needle's value."""
        return VALUE in self.answer


class Watch:
    """The most memory that the process was seen to have."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.peak_rss_bytes = self.held_bytes = 0

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            bill = self._child.client.get("/v1/memory").raise_for_status().json()
            self.peak_rss_bytes = max(self.peak_rss_bytes, bill["resident_set_bytes"])
            self.held_bytes = max(self.held_bytes, bill["device"]["held_bytes"])
            if self._ended.wait(1.0):
                return


def ask(
    child: Child, client: openai.OpenAI, what: str, content: str, start: str = "fresh", leave_at: int | None = None
) -> Call:
    """One streamed call, left once ``leave_at`` tokens are processed."""
    call, began = Call(what), time.perf_counter()
    with Watch(child) as watch:
        stream = client.chat.completions.create(
            model="fano-reader",
            messages=[{"role": "user", "content": content}],
            max_tokens=48,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"fano": {"start": start}},
        )
        with stream:
            for chunk in stream:
                call.first_byte_seconds = call.first_byte_seconds or time.perf_counter() - began
                _hear(call, chunk, began)
                if leave_at is not None and (call.last_processed or 0) >= leave_at:
                    break
    call.total_seconds = time.perf_counter() - began
    call.peak_rss_bytes, call.held_device_bytes = watch.peak_rss_bytes, watch.held_bytes
    return call


def _hear(call: Call, chunk: ChatCompletionChunk, began: float) -> None:
    progress = (chunk.model_extra or {}).get("prompt_progress")
    if progress is not None:
        call.num_progress += 1
        call.prompt_tokens, call.cached_tokens = progress["total"], progress["cached"]
        call.first_processed = progress["processed"] if call.first_processed is None else call.first_processed
        call.last_processed = progress["processed"]
        print(f"{call.what}: {progress}", file=sys.stderr, flush=True)
    for choice in chunk.choices:
        if choice.delta.content:
            call.first_token_seconds = call.first_token_seconds or time.perf_counter() - began
            call.answer += choice.delta.content
        call.quotes += [each["quote"] for each in (choice.delta.model_extra or {}).get("annotations", [])]
    if chunk.usage is not None:
        usage = chunk.usage.model_dump()
        call.prompt_tokens, call.cached_tokens = usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
        call.resident_bytes = sum(usage["fano"]["resident_bytes"].values())
        call.archive_bytes = usage["fano"]["archive_bytes"]
        call.retrieval_seconds = usage["fano"]["retrieval"]["seconds"]


def pasted(text: str, num_characters: int) -> str:
    """The beginning of the text with the needle in its middle, between two sentences."""
    part = text[:num_characters]
    middle = part.find(". ", len(part) // 2) + 2
    return f"{part[:middle]}{NEEDLE} {part[middle:]}"


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, nargs="+", help="plain text, five million characters for a million tokens")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="of the made-up prose")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--short", action="store_true", help="eight thousand tokens, and --check")
    parser.add_argument("--check", action="store_true", help="fail where something does not hold that must")
    options = parser.parse_args(arguments)
    num_tokens = 8_000 if options.short else options.tokens
    num_characters = int(num_tokens * CHARACTERS_PER_TOKEN[options.text is not None])
    if options.text is None:
        text = made_up_prose(num_characters, options.seed)
    else:
        text = "\n\n".join(path.read_text(encoding="utf-8") for path in options.text)
    long, short = pasted(text, num_characters), pasted(text, 12_000)

    with tempfile.TemporaryDirectory() as scratch:
        child = Child(Path(scratch) / "server.log")
        command = [sys.executable, "-m", "server", "serve", "--data-dir", f"{scratch}/data"]
        child.start(command, "/readyz", {"FANO_THREADS": str(options.threads)})
        try:
            client = openai.OpenAI(base_url=f"{child.client.base_url}/v1", api_key="any", max_retries=0, timeout=3600)
            calls = [ask(child, client, "short", f"{short}\n\n{QUESTION}")]
            asked = f"{long}\n\n{QUESTION}"
            calls.append(ask(child, client, "long", asked))
            calls.append(ask(child, client, "left while read", asked, "prompt", leave_at=num_tokens // 4))
            calls.append(ask(child, client, "again", asked, "prompt"))
            calls.append(ask(child, client, "once more", asked, "prompt"))
            calls.append(ask(child, client, "another question", f"{long}\n\n{OTHER_QUESTION}"))
        finally:
            child.kill()
    report(calls, describe_machine(options.threads) | {"seed": options.seed})
    if options.short or options.check:
        check(calls)


def check(calls: Sequence[Call]) -> None:
    """What holds at any length, whatever the machine does beside."""
    short, first, left, again, more, other = calls
    assert first.is_right and first.resident_bytes <= short.resident_bytes, "a fresh answer holds what a short one does"
    assert again.resident_bytes == more.resident_bytes, "whatever was read before"
    assert again.cached_tokens >= (left.last_processed or 0) > 0, "what was read is not read again"
    assert more.cached_tokens == more.prompt_tokens, "a prompt that was read is not read again"
    assert other.prompt_tokens - other.cached_tokens < 2048, "another question reads its own end"
    assert again.last_processed == again.prompt_tokens and all(call.is_right for call in (again, more, other))


def report(calls: Sequence[Call], machine: dict[str, object]) -> None:
    """A table for people, and a line for programs."""
    head = ["call", "tokens", "cached", "first byte, s", "first token, s", "search, s", "progress", "resident bytes"]
    head += ["archive bytes", "most of the process, MB", "answer"]
    print(f"| {' | '.join(head)} |")
    print("|" + "---|" * len(head))
    for call in calls:
        token = "" if call.first_token_seconds is None else f"{call.first_token_seconds:.1f}"
        print(
            f"| {call.what} | {call.prompt_tokens:,} | {call.cached_tokens:,} | {call.first_byte_seconds:.1f} "
            f"| {token} | {call.retrieval_seconds:.1f} | {call.num_progress} | {call.resident_bytes:,} "
            f"| {sum(call.archive_bytes.values()):,} | {call.peak_rss_bytes / 1e6:.0f} | {call.answer!r} |"
        )
    told = [asdict(call) | {"is_right": call.is_right} for call in calls]
    print(json.dumps({"bench": "long_prompts", **machine, "calls": told}))


if __name__ == "__main__":
    main()
