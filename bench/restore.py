"""A saved conversation after a restart, beside llama.cpp: how long until it goes on, and how much is read again?

    python -m bench.llama                                        once: build llama.cpp outside the source tree
    python -m bench.restore                                      3,400 and 100,000 tokens (half an hour)
    python -m bench.restore --tokens 3400 --repetitions 5 --peers llama.cpp

Each server reads a prompt, writes 16 tokens, saves, and is killed with SIGKILL. Then, twice: it is started, the saved
session is restored, and the conversation goes on, once with a new question, once with the prompt's last 20 words
changed. The first token is timed by the client. Servers take turns on the same texts; each repetition has another
text of the same length. Same random weights for all. One thread each: with a thread on every core llama.cpp waits
in loops for the slowest, and a busy neighbour counts many times. Prints a table of medians, then one JSON line.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.checkpoints import make_chat_checkpoint, random_text, words_of_one_token
from bench.fano_server import FanoServer
from bench.llama import LlamaBuild, LlamaServer, default_directory
from bench.peers import Answer, Message, Peer, Spent

REPLY_TOKENS = 16
TAIL_TOKENS = 20
QUESTION_TOKENS = 20
# For the reply, the question, the template and the other turn.
SPARE_TOKENS = 512
READ, LIVE = "read the prompt", "changed tail, not stopped"
CONTINUED, CHANGED = "restored, continued", "restored, changed tail"


@dataclass(frozen=True)
class Turn:
    """One answer of one server. Start and restore are those before it, None where it had been running."""

    peer: str
    num_tokens: int
    repetition: int
    step: str
    start_seconds: float | None
    restore: Spent | None
    first_token: Spent
    num_prompt_tokens: int
    num_read_tokens: int
    save_seconds: float | None = None
    num_bytes: int | None = None
    same_text: bool | None = None


@dataclass(frozen=True)
class Talk:
    """What is said to every server: a prompt, its changed form, and the question that goes on after the reply."""

    prompt: str
    changed: str
    question: str

    @staticmethod
    def draw(words: list[str], num_tokens: int, dice: random.Random) -> "Talk":
        """A talk whose first prompt has ``num_tokens`` tokens, template included."""
        overhead = 4  # start of text, user, end, assistant
        head = random_text(words, num_tokens - overhead - TAIL_TOKENS, dice)
        tails = [random_text(words, TAIL_TOKENS, dice) for _ in range(2)]
        return Talk(f"{head} {tails[0]}", f"{head} {tails[1]}", random_text(words, QUESTION_TOKENS, dice))

    def going_on(self, reply: str) -> list[Message]:
        return [*user(self.prompt), {"role": "assistant", "content": reply}, *user(self.question)]


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def main() -> None:
    options = parse_options()
    # Not above: options and tables should not wait for torch.
    from bench.sides import SMALL
    from bench.throughput import describe_machine

    turns: list[Turn] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        checkpoint = directory / "checkpoint"
        num_parameters = make_chat_checkpoint(checkpoint, SMALL, options.seed)
        build = LlamaBuild(options.llama)
        versions = {"llama": build.version} if "llama.cpp" in options.peers else {}
        print(f"{num_parameters / 1e6:.1f} M parameters, {options.dtype}, seed {options.seed}")
        machine = describe_machine(options.threads) | versions
        print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
        for num_tokens in options.tokens:
            context = num_tokens + SPARE_TOKENS
            peers: list[Peer] = []
            if "llama.cpp" in options.peers:
                gguf = build.convert(checkpoint, options.dtype)
                peers.append(LlamaServer(build, gguf, directory, options.threads, context))
            if "fano" in options.peers:
                place = (checkpoint, directory, options.dtype, options.threads, context, options.policy)
                peers.append(FanoServer(*place))
            repetitions = options.repetitions or (3 if num_tokens <= 20_000 else 1)
            turns += compare(peers, num_tokens, repetitions, options.seed)
    machine["load at the end"] = describe_machine(options.threads)["load"]
    rows = medians(turns)
    print(table(rows))
    result = {"bench": "restore", "machine": machine, "seed": options.seed, "dtype": options.dtype}
    result |= {"policy": options.policy, "num_parameters": num_parameters, "rows": rows}
    print(json.dumps(result | {"turns": [asdict(turn) for turn in turns]}))


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[3400, 100_000], help="tokens of the prompt")
    parser.add_argument("--repetitions", type=int, help="default 3, and 1 for prompts beyond 20,000 tokens")
    parser.add_argument("--peers", nargs="+", choices=["llama.cpp", "fano"], default=["llama.cpp", "fano"])
    parser.add_argument("--llama", type=Path, default=default_directory(), help="where bench.llama built it")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--policy", choices=["full", "window"], default="full", help="Fano's; llama.cpp has full alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if "llama.cpp" in options.peers and not LlamaBuild(options.llama).server.is_file():
        parser.error(f"no llama-server below {options.llama}: python -m bench.llama --directory {options.llama}")
    return options


def compare(peers: Sequence[Peer], num_tokens: int, repetitions: int, seed: int) -> list[Turn]:
    """All turns of all servers, which change places with every repetition."""
    words = words_of_one_token()
    turns: list[Turn] = []
    for repetition in range(repetitions):
        talk = Talk.draw(words, num_tokens, random.Random(f"{seed}/{num_tokens}/{repetition}"))
        for peer in peers if repetition % 2 == 0 else reversed(peers):
            turns += converse(peer, talk, num_tokens, repetition)
            print(f"{peer.name}: {num_tokens} tokens, {repetition + 1}/{repetitions}", file=sys.stderr, flush=True)
    return turns


def converse(peer: Peer, talk: Talk, num_tokens: int, repetition: int) -> list[Turn]:
    """One conversation, saved once and continued from there in two ways."""
    place = (peer.name, num_tokens, repetition)
    peer.forget()
    try:
        start_seconds = peer.start()
        first = peer.ask(user(talk.prompt), REPLY_TOKENS)
        assert first.num_prompt_tokens == num_tokens, f"{peer.name} counts {first.num_prompt_tokens} tokens"
        saved = peer.save()
        turns = [Turn(*place, READ, start_seconds, None, *told(first), saved.seconds, saved.num_bytes)]
        # What it can do with everything in memory: the rest is what the restart cost.
        live = peer.ask(user(talk.changed), REPLY_TOKENS)
        turns.append(Turn(*place, LIVE, None, None, *told(live)))
        peer.kill()
        for step, messages in ((CONTINUED, talk.going_on(first.text)), (CHANGED, user(talk.changed))):
            start_seconds = peer.start()
            restored = peer.restore()
            answer = peer.ask(messages, REPLY_TOKENS)
            same_text = answer.text == live.text if step == CHANGED else None
            turns.append(Turn(*place, step, start_seconds, restored, *told(answer), same_text=same_text))
            peer.kill()
    finally:
        peer.kill()
    return turns


def told(answer: Answer) -> tuple[Spent, int, int]:
    return answer.first_token, answer.num_prompt_tokens, answer.num_read_tokens


def medians(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """A row for each length, step and server: medians over the repetitions, and how much sooner than llama.cpp.

    A client waits for the restore and then for the first token: their sums are compared.
    """
    rows: list[dict[str, Any]] = []
    for key in dict.fromkeys((turn.num_tokens, turn.step, turn.peer) for turn in turns):
        same = [turn for turn in turns if (turn.num_tokens, turn.step, turn.peer) == key]
        row: dict[str, Any] = dict(zip(("num_tokens", "step", "peer"), key, strict=True))
        for field in ("num_prompt_tokens", "num_read_tokens", "num_bytes", "start_seconds", "save_seconds"):
            row[field] = median([getattr(turn, field) for turn in same])
        for clock in ("seconds", "cpu_seconds"):
            restores = [getattr(turn.restore, clock) if turn.restore else None for turn in same]
            firsts = [getattr(turn.first_token, clock) for turn in same]
            row[f"restore_{clock}"], row[f"first_token_{clock}"] = median(restores), median(firsts)
            row[f"sum_{clock}"] = median([(a or 0.0) + b for a, b in zip(restores, firsts, strict=True)])
        row["same_text"] = all(turn.same_text for turn in same) if same[0].same_text is not None else None
        rows.append(row)
    for row in rows:
        beside = [r for r in rows if r["peer"] == "llama.cpp" and all(r[k] == row[k] for k in ("num_tokens", "step"))]
        for clock in ("seconds", "cpu_seconds"):
            row[f"ratio_{clock}"] = beside[0][f"sum_{clock}"] / row[f"sum_{clock}"] if beside else None
    return sorted(rows, key=lambda row: (row["num_tokens"], (READ, LIVE, CONTINUED, CHANGED).index(row["step"])))


def median(values: Sequence[float | int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What a person reads. The sum is of restore and first token, in brackets as CPU time, and so are the ratios."""
    heads = ["start s", "restore s", "token s", "sum s", "(CPU s)", "ratio", "(CPU)", "read", "of", "save s"]
    lines = [" ".join([f"{'tokens':>7} {'step':26} {'server':12}", *(f"{head:>9}" for head in heads), "MiB saved"])]
    for row in rows:
        cells = [number(row[f"{field}_seconds"], 3) for field in ("start", "restore", "first_token", "sum", "sum_cpu")]
        cells += [number(row["ratio_seconds"], 1), number(row["ratio_cpu_seconds"], 1)]
        cells += [number(row["num_read_tokens"], 0), number(row["num_prompt_tokens"], 0)]
        num_bytes = row["num_bytes"]
        cells += [number(row["save_seconds"], 3), number(None if num_bytes is None else num_bytes / 2**20, 2)]
        if row["same_text"] is False:
            cells.append("(not the text of the server that was not stopped)")
        lines.append(" ".join([f"{row['num_tokens']:7} {row['step']:26} {row['peer']:12}", *cells]).rstrip())
    return "\n".join(lines)


def number(value: float | None, digits: int) -> str:
    return f"{'' if value is None else format(value, f'.{digits}f'):>9}"


if __name__ == "__main__":
    main()
