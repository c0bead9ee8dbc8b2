"""What the model answers when it reads the text itself: under ``window``, and under ``full`` where that ends."""

import statistics
import time
from array import array
from collections import defaultdict

from bench.recall.answers import Marks, even_sample
from bench.recall.cases import Case
from bench.recall.ledger import Cell, Ledger
from bench.recall.tasks import Tasks
from model.config import EngineConfig
from model.engine.engine import Engine
from model.engine.loader import choose_dtype, load_engine
from model.engine.request import GenerationRequest, SamplingParams
from model.policy import AttentionPolicy, PolicyName
from server.answers.prompt import document_question
from server.services import embedded_checkpoint

READ_TASKS = ("single", "uuids", "lone")
MAX_TOKENS = 48
# Texts of a cell are read until each group has its questions, or so many tokens were read; one is read in any case.
MOST_READ = {PolicyName.WINDOW: 400_000, PolicyName.FULL: 150_000}


class ReadingStage:
    """No archive, no passages: the text stands in the prompt, in the form the model was trained on."""

    def __init__(self, tasks: Tasks, num_threads: int, longest_full: int) -> None:
        self._tasks = tasks
        self._num_threads = num_threads
        self._longest_full = longest_full

    def run(self, ledger: Ledger, names: list[str], lengths: list[int], num_cases: int, num_asked: int) -> None:
        """All cells that are not in the ledger yet; each text is read once for all its questions."""
        for way in (PolicyName.WINDOW, PolicyName.FULL):
            for num_tokens in sorted(lengths):
                if way is PolicyName.FULL and num_tokens > self._longest_full:
                    continue
                for name in names:
                    if name in READ_TASKS and not ledger.has("reading", name, num_tokens, way.value):
                        cell = self._measure(name, num_tokens, way, num_cases, num_asked)
                        ledger.add(cell)
                        _print(cell)

    def _measure(self, name: str, num_tokens: int, way: PolicyName, num_cases: int, num_asked: int) -> Cell:
        config = EngineConfig(
            num_slots=2,
            max_context_tokens=num_tokens + num_tokens // 4 + 4096,
            dtype=choose_dtype("cpu")[0],
            policy=AttentionPolicy(way),
            num_threads=self._num_threads,
        )
        engine, _ = load_engine(embedded_checkpoint(), config)
        marks: dict[str, Marks] = defaultdict(Marks)
        seconds: list[float] = []
        read_seconds: list[float] = []
        num_read: list[int] = []
        for number, corpus in enumerate(self._tasks.corpora(name, num_tokens, num_cases)):
            if num_read and (sum(num_read) + num_tokens > MOST_READ[way] or _is_enough(marks, num_asked)):
                break
            cases = even_sample(corpus.cases, num_asked)
            prompts = [_prompt(engine, corpus.text, case.question) for case in cases]
            # What all questions have in common is read once and kept; each goes on from there.
            shared = prompts[0][: _common(prompts[0], _prompt(engine, corpus.text, "?"))]
            num_read.append(len(shared))
            started = time.process_time()
            _generate(engine, f"{number}", shared, 0)
            read_seconds.append(time.process_time() - started)
            for place, (case, prompt) in enumerate(zip(cases, prompts, strict=True)):
                started = time.process_time()
                answer = _generate(engine, f"{number}.{place}", prompt, MAX_TOKENS)
                seconds.append(time.process_time() - started)
                _note(marks[case.group], case, answer)
        return {
            "bench": "recall",
            "kind": "reading",
            "task": name,
            "tokens": num_tokens,
            "way": way.value,
            "seed": self._tasks.seed,
            "num_tokens": [min(num_read), max(num_read)],
            "documents": len(num_read),
            "groups": {group: marked.as_json() for group, marked in sorted(marks.items())},
            "read_cpu_seconds": round(statistics.median(read_seconds), 1),
            "answer_cpu_seconds": round(statistics.median(seconds), 2),
        }


def _is_enough(marks: dict[str, Marks], num_asked: int) -> bool:
    return all(marked.asked >= num_asked for marked in marks.values())


def _note(marks: Marks, case: Case, answer: str) -> None:
    # All of the text was before the model, so everything counts as found.
    marks.note(case, answer, [place for part in case.parts for place in part.places[:1]], bool(answer.strip()))


def _prompt(engine: Engine, text: str, question: str) -> "array[int]":
    content = document_question(question, [text])
    return array("i", engine.tokenizer.encode_chat([{"role": "user", "content": content}]))


def _common(one: "array[int]", other: "array[int]") -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _generate(engine: Engine, request_id: str, prompt: "array[int]", max_tokens: int) -> str:
    background = max_tokens == 0
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    engine.submit(GenerationRequest(request_id, prompt, sampling, is_background=background))
    text = ""
    while engine.has_work():
        for event in engine.step():
            assert event.error is None, event.error
            text += event.text
    return text


def _print(cell: Cell) -> None:
    print(f"\n{cell['task']} at {cell['tokens']:,}, read under {cell['way']}: {cell['read_cpu_seconds']} CPU s, "
          f"{cell['answer_cpu_seconds']} an answer")  # fmt: skip
    for group, marks in cell["groups"].items():
        print(f"  {group:24} right {marks['right']:3} exact {marks['exact']:3} of {marks['asked']:3}", flush=True)
