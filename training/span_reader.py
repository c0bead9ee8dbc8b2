"""A span reader fine-tuned from MiniLM on the same questions: what an encoder of 22 M parameters does with them.

    python -m training.span_reader --data DATA --run runs/span --minutes 30

The usual head of extractive reading (Devlin et al. 2018, section 4.2): a score for each token as first and as last of
the answer; passages longer than the window are read in overlapping windows. Weights alone are written, every few
minutes; started again, training goes on from them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.contamination import Evaluation, evaluation_texts
from training.corpus import data_directory, records
from training.examples import SHARES
from training.warm_start import minilm_directory

WINDOW, STRIDE, LONGEST_ANSWER, LONGEST_QUESTION = 192, 96, 24, 40


@dataclass(frozen=True, slots=True)
class Example:
    question: str
    context: str
    start: int
    end: int


def examples(data: Path) -> list[Example]:
    """Answerable questions of the sources the reader is trained on, none whose context an evaluation text shares."""
    evaluation = Evaluation(evaluation_texts(data))
    shared: dict[str, bool] = {}
    found = []
    for name in ("qa_train.jsonl.xz", "qa_train_synth.jsonl.xz"):
        for r in records(data / name):
            places = [(a, s) for a, s in zip(r["answers"], r["answer_start"] or [], strict=False) if s >= 0]
            if r["source"] not in SHARES or not places:
                continue
            context = r["context"]
            if context not in shared:
                shared[context] = context in evaluation
            if not shared[context]:
                answer, at = places[0]
                found.append(Example(r["question"], context, at, at + len(answer)))
    return found


class SpanReader(nn.Module):
    """forward(ids, types, mask) [B, T] -> scores of each token as first and as last of the answer, [B, T, 2]."""

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        super().__init__()
        directory = str(minilm_directory())
        self.encoder = AutoModel.from_pretrained(directory, add_pooling_layer=False)
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.head = nn.Linear(self.encoder.config.hidden_size, 2)

    def forward(self, ids: Tensor, types: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(ids.device.type, dtype=torch.bfloat16):
            hidden = self.encoder(input_ids=ids, token_type_ids=types, attention_mask=mask).last_hidden_state
        return self.head(hidden.float())

    def batch(self, pairs: list[tuple[str, str]], stride: int = STRIDE) -> dict[str, Tensor | list[int]]:
        """Padded to WINDOW tokens always: one shape, one program. `owner` is each window's pair."""
        asked = [" ".join(question.split()[:LONGEST_QUESTION]) for question, _ in pairs]
        made = self.tokenizer(
            asked, [context for _, context in pairs], truncation="only_second", max_length=WINDOW, stride=stride,
            return_overflowing_tokens=True, return_offsets_mapping=True, padding="max_length", return_tensors="pt",
        )  # fmt: skip
        inside = torch.tensor([[part == 1 for part in made.sequence_ids(i)] for i in range(len(made["input_ids"]))])
        return {
            "ids": made["input_ids"], "types": made["token_type_ids"], "mask": made["attention_mask"],
            "offsets": made["offset_mapping"], "inside": inside, "owner": made["overflow_to_sample_mapping"],
        }  # fmt: skip

    @torch.no_grad()
    def answer(self, passages: list[str], question: str) -> str:
        """The span of the highest first and last scores together, over all windows of all passages."""
        made = self.batch([(question, passage) for passage in passages])
        both = self(made["ids"], made["types"], made["mask"]).masked_fill(~made["inside"][..., None], -1e4)
        first, last = both.unbind(-1)
        sums = first[:, :, None] + last[:, None, :]
        tokens = sums.shape[1]
        sums = sums.masked_fill(~torch.ones(tokens, tokens).triu().tril(LONGEST_ANSWER).bool(), -1e9)
        window, start, end = (int(i) for i in torch.unravel_index(sums.argmax(), sums.shape))
        low, high = int(made["offsets"][window, start, 0]), int(made["offsets"][window, end, 1])
        return passages[int(made["owner"][window])][low:high]


def cut(example: Example, rng: random.Random, characters: int = 700) -> Example:
    """A window of the context around the answer, at spaces, so that nearly all of it fits."""
    if len(example.context) <= characters:
        return example
    spare = max(0, characters - (example.end - example.start))
    low = max(0, min(example.start - rng.randint(0, spare), len(example.context) - characters))
    low = min(example.start, example.context.find(" ", low) + 1 if low else 0)
    return Example(
        example.question, example.context[low : max(low + characters, example.end)],
        example.start - low, example.end - low,
    )  # fmt: skip


def loss(reader: SpanReader, chosen: list[Example]) -> Tensor:
    """Cross entropy of the answer's first and last token among the context's, over windows that hold the answer."""
    made = reader.batch([(e.question, e.context) for e in chosen], stride=0)
    offsets, inside = made["offsets"], made["inside"]
    starts = torch.tensor([chosen[i].start for i in made["owner"]])[:, None]
    ends = torch.tensor([chosen[i].end for i in made["owner"]])[:, None]
    covers_first = inside & (offsets[..., 0] <= starts) & (starts < offsets[..., 1])
    covers_last = inside & (offsets[..., 0] < ends) & (ends <= offsets[..., 1])
    usable = covers_first.any(1) & covers_last.any(1)
    both = reader(made["ids"][usable], made["types"][usable], made["mask"][usable])
    both = both.masked_fill(~inside[usable][..., None], -1e4)
    wanted = torch.stack([covers_first[usable].float().argmax(1), covers_last[usable].float().argmax(1)], 1)
    return F.cross_entropy(both.transpose(1, 2).reshape(-1, WINDOW), wanted.flatten())


def save(path: Path, reader: SpanReader, state: dict[str, float]) -> None:
    scratch = path.with_suffix(".partial")
    torch.save({"model": reader.state_dict(), "state": state}, scratch)
    scratch.replace(path)


def load(run: Path) -> tuple[SpanReader, dict[str, float]]:
    """The reader as last saved in `run`, or as it begins."""
    torch.manual_seed(0)
    reader, state = SpanReader(), {"step": 0, "questions": 0, "seconds": 0.0}
    if (run / "last.pt").exists():
        saved = torch.load(run / "last.pt")
        reader.load_state_dict(saved["model"])
        state = saved["state"]
    return reader, state


def train(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    arguments.run.mkdir(parents=True, exist_ok=True)
    reader, state = load(arguments.run)
    pool = examples(data_directory(arguments.data))
    rng = random.Random(arguments.seed + int(state["step"]))
    optimizer = torch.optim.AdamW(reader.parameters(), lr=arguments.rate, weight_decay=0.01)
    print(f"{sum(p.numel() for p in reader.parameters()) / 1e6:.1f} M parameters, {len(pool)} questions, {state}")
    began, saved_at, since_start, recent = time.monotonic() - state["seconds"], time.monotonic(), 0, []
    limit = 60 * arguments.minutes
    order: list[int] = []
    while state["seconds"] < limit:
        if len(order) < arguments.batch:
            order = rng.sample(range(len(pool)), len(pool))
        chosen = [cut(pool[order.pop()], rng) for _ in range(min(arguments.batch, len(order)))]
        value = loss(reader, chosen)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        factor = min((since_start + 1) / 50, max(0.02, 1 - state["seconds"] / limit))
        optimizer.param_groups[0]["lr"] = arguments.rate * factor
        optimizer.step()
        recent.append(value.item())
        since_start += 1
        state = {"step": state["step"] + 1, "questions": state["questions"] + len(chosen),
                 "seconds": time.monotonic() - began}  # fmt: skip
        if state["step"] % 50 == 0:
            print(json.dumps(state | {"loss": round(sum(recent) / len(recent), 3)}), flush=True)
            recent = []
        if time.monotonic() - saved_at > 180:
            save(arguments.run / "last.pt", reader, state)
            saved_at = time.monotonic()
    save(arguments.run / "last.pt", reader, state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--run", type=Path, default=Path("runs/span"))
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
