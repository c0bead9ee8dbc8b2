"""What a server costs as it is asked for more: longer prompts, more sessions, more documents. Seconds and bytes.

    python -m bench.growth --out growth.jsonl --plot docs/growth.png

Each curve has a server of its own, one after the other, with the embedded model; each point is asked over HTTP and told
with the client's seconds, the server's CPU seconds and its resident set. Prompts are of words drawn anew, so that
nothing is reused. Results are written as they come, and a run that is started again goes on with the curve at which it
stopped.
"""

import argparse
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.peers import Child, Spent, Watch, bytes_below
from bench.soak import resident_mib
from bench.throughput import describe_machine

LENGTHS = (1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000)
SESSIONS = (1, 2, 4, 8, 16, 32, 64)
DOCUMENTS = (1, 10, 100, 1_000, 10_000)
SESSION_WORDS = 1_500
DOCUMENT_ROWS = 8
NUM_SENDERS = 4
NUM_ASKED = 15
# As many as a request may name.
MAX_DOCUMENTS = 64
DOCUMENTS_BY_STATUS = re.compile(r'^fano_documents\{status="(\w+)"\} (\S+)$', re.MULTILINE)
WORDS = "harbour winter lantern ledger orchard captain river market signal copper meadow teacher engine".split()
Point = dict[str, Any]


class Server:
    """``fano serve`` on a new data directory: what a client sees of it, and what the system sees of its process."""

    def __init__(self, directory: Path, environ: dict[str, str], threads: int) -> None:
        self.data = directory / "data"
        self.child = Child(directory / "fano.log")
        self._command = [str(Path(sys.executable).with_name("fano")), "serve", "--data-dir", str(self.data)]
        self._environ = {"FANO_THREADS": str(threads), **environ}
        self.start()
        self.model = self.get("/v1/models")["data"][0]["id"]

    def start(self) -> Spent:
        """Begin, or begin again on the same data after a SIGKILL; what it took until ready."""
        self.child.kill()
        seconds = self.child.start(self._command, "/readyz", self._environ)
        return Spent(seconds, self.child.cpu_seconds())

    def get(self, path: str) -> Point:
        reply: Point = self.child.client.get(path).raise_for_status().json()
        return reply

    def usage(self, text: str, **extension: object) -> Point:
        """What a chat of one message is said to have used."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 1,
            "fano": extension,
        }
        reply = self.child.client.post("/v1/chat/completions", json=body).raise_for_status().json()
        usage: Point = reply["usage"]
        return usage

    def spent_on(self, method: str, path: str, body: Point | None = None) -> tuple[Spent, Point]:
        """What a request took, and its reply."""
        watch = Watch(self.child)
        reply = self.child.client.request(method, path, json=body)
        spent = watch.spent()
        return spent, reply.raise_for_status().json()

    def num_ready(self) -> int:
        """How many documents are ready."""
        text = self.child.client.get("/metrics").raise_for_status().text
        by_status = {status: int(float(count)) for status, count in DOCUMENTS_BY_STATUS.findall(text)}
        if by_status["failed"]:
            raise RuntimeError(f"documents failed: {by_status}")
        return by_status["ready"]

    @property
    def process_id(self) -> int:
        """Of the server."""
        assert self.child.process is not None
        return self.child.process.pid

    def resident_bytes(self) -> int:
        """The resident set of the process."""
        return round(resident_mib(self.process_id) * 2**20)

    def held(self) -> Point:
        """What it holds open: descriptors, and files mapped into memory."""
        process = Path(f"/proc/{self.process_id}")
        return {
            "open_files": len(list((process / "fd").iterdir())),
            "mapped_files": len((process / "maps").read_text().splitlines()),
        }


def by_length(server: Server, lengths: Sequence[int]) -> Iterator[Point]:
    """One prompt of each length, read from its first token to its last."""
    for num_tokens in lengths:
        text = prose(num_tokens, f"length {num_tokens}")
        watch = Watch(server.child)
        usage = server.usage(text)
        spent = watch.spent()
        yield {
            "num": usage["prompt_tokens"],
            "seconds": spent.seconds,
            "cpu_seconds": spent.cpu_seconds,
            "state_bytes": sum(usage["fano"]["resident_bytes"].values()),
            "resident_bytes": server.resident_bytes(),
        }


def by_sessions(server: Server, counts: Sequence[int]) -> Iterator[Point]:
    """Named sessions that have read a page each; ``seconds`` are those of the next turn of one of them."""
    texts: list[str] = []
    for count in counts:
        while len(texts) < count:
            texts.append(" ".join(random.Random(f"session {len(texts)}").choices(WORDS, k=SESSION_WORDS)))
            server.usage(texts[-1], session=f"growth-{len(texts)}")
        chosen = random.Random(count).choices(range(count), k=NUM_ASKED)
        asked: list[Spent] = []
        for turn, number in enumerate(chosen):
            texts[number] += f" And then {turn}."
            watch = Watch(server.child)
            usage = server.usage(texts[number], session=f"growth-{number + 1}")
            asked.append(watch.spent())
        yield {
            "num": count,
            **medians(asked),
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "state_bytes": sum(usage["fano"]["resident_bytes"].values()),
            "resident_bytes": server.resident_bytes(),
            "disk_bytes": bytes_below(server.data),
        }


def by_documents(server: Server, counts: Sequence[int]) -> Iterator[Point]:
    """Small documents; ``seconds`` are those of a question by key to one of them, ``many_seconds`` of one to as many at
    once as a request may name, ``ingest_seconds`` what all the new ones took until the last could be asked by meaning,
    too, and ``start_seconds`` what a start on them took after a SIGKILL."""
    ids: list[str] = []

    def send(number: int) -> str:
        body = {"name": f"{number}.txt", "text": document(number)}
        reply = server.child.client.post("/v1/documents", json=body)
        return str(reply.raise_for_status().json()["id"])

    for count in counts:
        watch = Watch(server.child)
        with ThreadPoolExecutor(NUM_SENDERS) as senders:
            new = list(senders.map(send, range(len(ids), count)))
        while server.num_ready() < count:
            time.sleep(0.05 if count <= 100 else 1.0)
        ingest = watch.spent()
        ids += new
        resident_bytes = server.resident_bytes()
        started = server.start()
        dice = random.Random(count)

        def ask(documents: Sequence[str], number: int) -> Spent:
            body = {"documents": documents, "question": f"Who holds berth TW-{number}-3?", "recall": "verbatim"}
            spent, answer = server.spent_on("POST", "/v1/ask", body)
            assert f"keeper K{number:05d}3" in json.dumps(answer), answer
            return spent

        one, many = [], []
        for number in dice.choices(range(count), k=NUM_ASKED):
            one.append(ask([ids[number]], number))
            others = [ids[each] for each in dice.sample(range(count), min(count, MAX_DOCUMENTS)) if each != number]
            many.append(ask([ids[number], *others[: MAX_DOCUMENTS - 1]], number))
        pages = [
            server.spent_on("GET", f"/v1/documents?limit=100&after={ids[count // 2]}")[0] for _ in range(NUM_ASKED)
        ]
        yield {
            "num": count,
            **medians(one),
            **medians(many, "many_"),
            **medians(pages, "list_"),
            "num_new": len(new),
            "ingest_seconds": ingest.seconds,
            "ingest_cpu_seconds": ingest.cpu_seconds,
            "document_seconds": ingest.seconds / len(new),
            "document_cpu_seconds": ingest.cpu_seconds / len(new),
            "start_seconds": started.seconds,
            "start_cpu_seconds": started.cpu_seconds,
            "resident_bytes": resident_bytes,
            "asked_resident_bytes": server.resident_bytes(),
            "disk_bytes": bytes_below(server.data),
            **server.held(),
        }


def medians(asked: Sequence[Spent], prefix: str = "") -> Point:
    """By both clocks."""
    return {
        f"{prefix}seconds": statistics.median(spent.seconds for spent in asked),
        f"{prefix}cpu_seconds": statistics.median(spent.cpu_seconds for spent in asked),
    }


CURVES: dict[str, tuple[Callable[[Server, Sequence[int]], Iterator[Point]], Sequence[int], dict[str, str]]] = {
    "length": (by_length, LENGTHS, {"FANO_MAX_CONTEXT_TOKENS": "1200000"}),
    "sessions": (by_sessions, SESSIONS, {"FANO_MAX_SEQUENCES": "4"}),
    # Reading ten thousand documents is the first curve again.
    "documents": (by_documents, DOCUMENTS, {"FANO_READ_DOCUMENTS": "false"}),
}


def prose(num_tokens: int, seed: str) -> str:
    """Words of about so many tokens in all."""
    rng = random.Random(seed)
    return " ".join(rng.choices(WORDS, k=round(num_tokens / 1.35)))


def document(number: int) -> str:
    """Some rows under keys that no other document has."""
    rng = random.Random(number)
    rows = (
        f"Near the {rng.choice(WORDS)} berth TW-{number}-{row} is held by keeper K{number:05d}{row} of the "
        f"{rng.choice(WORDS)}."
        for row in range(DOCUMENT_ROWS)
    )
    return "\n\n".join(rows)


def show(curve: str, point: Point) -> None:
    told = ", ".join(
        f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value:,}"
        for name, value in point.items()
        if name not in ("curve", "num")
    )
    print(f"{curve} {point['num']:,}: {told}", flush=True)


def draw(points: Sequence[Point], path: Path) -> None:
    """Seconds above, bytes below, a column for each curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {
        "length": ("tokens of a prompt", {"seconds": "to its first answer token"}),
        "sessions": ("named sessions", {"seconds": "next turn of one"}),
        "documents": (
            "documents",
            {
                "seconds": "question by key to one",
                "many_seconds": f"to up to {MAX_DOCUMENTS} at once",
                "document_seconds": "until indexed, each",
                "start_seconds": "start after a SIGKILL",
            },
        ),
    }
    kinds = {"resident_bytes": "resident set", "disk_bytes": "on the disk", "state_bytes": "state of one request"}
    figure, panels = pyplot.subplots(2, len(titles), figsize=(12, 6), layout="constrained")
    for (curve, (title, seconds)), (above, below) in zip(titles.items(), panels.T, strict=True):
        mine = [point for point in points if point["curve"] == curve]
        for panel, lines, unit in ((above, seconds, 1.0), (below, kinds, 2.0**20)):
            for name, label in lines.items():
                there = [(point["num"], point[name] / unit) for point in mine if name in point]
                if there:
                    panel.plot(*zip(*there, strict=True), marker="o", label=label)
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.grid(alpha=0.3)
            if panel.lines:
                panel.legend(fontsize=8)
        below.set_xlabel(title)
    panels[0][0].set_ylabel("seconds")
    panels[1][0].set_ylabel("MiB")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="results, a line of JSON each; taken up where it ends")
    parser.add_argument("--plot", type=Path, help="png to draw")
    parser.add_argument("--curves", nargs="+", choices=[*CURVES], default=[*CURVES])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--most", type=int, default=1 << 60, help="no point beyond this")
    arguments = parser.parse_args()
    points = []
    if arguments.out.exists():
        points = [json.loads(line) for line in arguments.out.read_text().splitlines()]
    for curve in arguments.curves:
        measure, nums, environ = CURVES[curve]
        nums = [num for num in nums if num <= arguments.most]
        if sum(point["curve"] == curve for point in points) >= len(nums):
            continue
        # A curve that was cut off is measured anew: its server is gone, and with it what its points rest on.
        points = [point for point in points if point["curve"] != curve]
        with tempfile.TemporaryDirectory() as folder:
            server = Server(Path(folder), environ, arguments.threads)
            try:
                for point in measure(server, nums):
                    points.append({"curve": curve, **point})
                    arguments.out.write_text("".join(json.dumps(point) + "\n" for point in points))
                    show(curve, point)
            finally:
                server.child.kill()
    print(json.dumps({"bench": "growth", "machine": describe_machine(arguments.threads), "points": points}))
    if arguments.plot is not None:
        draw(points, arguments.plot)


if __name__ == "__main__":
    main()
