"""Prompts in the archive: places in their messages, work that is done once, and memory that has a bound."""

import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from retrieval.embedder import HashEmbedder
from retrieval.errors import PromptMemoryFull
from retrieval.open_prompt import HeldText, OpenPrompt
from retrieval.passage import Span
from retrieval.prompt_archive import GAP, TEXT_CHARACTERS, PromptArchive, needed
from retrieval.prompt_part import PromptPart

WORDS = "harbour winter lantern ledger orchard captain river market garden signal copper meadow".split()
CODE = "The maintenance code of the Halvorsen turbine is QX-7741-B."


@pytest.fixture
def archive(tmp_path: Path) -> PromptArchive:
    return PromptArchive(tmp_path / "prompts", HashEmbedder(dimension=32))


def prose(num_sentences: int, seed: int, needle: str | None = None) -> str:
    """Sentences in paragraphs, with headings and characters beyond ASCII; the needle in their middle."""
    dice = random.Random(seed)
    sentences = [f"{' '.join(dice.choices(WORDS, k=9)).capitalize()} – naïve 🜁." for _ in range(num_sentences)]
    if needle:
        sentences.insert(num_sentences // 2, needle)
    lines = [f"# {sentence}\r\n" if dice.random() < 0.05 else f"{sentence} " for sentence in sentences]
    return "".join(f"{line}\n\n" if dice.random() < 0.1 else line for line in lines)


def conversation(seed: int) -> list[PromptPart]:
    """Messages short and long, of which one, in two parts, has the code."""
    dice = random.Random(seed)
    lengths = [dice.choice([1, 3, 40, 400, 900]) for _ in range(dice.randrange(2, 8))]
    place = dice.randrange(len(lengths))
    texts = [prose(length, seed + at, CODE if at == place else None) for at, length in enumerate(lengths)]
    parts = [PromptPart(f"messages.{at}", 0, text) for at, text in enumerate(texts)]
    cut = dice.randrange(len(texts[-1]))
    last = parts.pop()
    return [*parts, PromptPart(last.name, 0, last.text[:cut]), PromptPart(last.name, cut, last.text[cut:])]


@pytest.mark.parametrize("seed", range(12))
def test_what_is_found_stands_where_it_says_in_one_message(archive: PromptArchive, seed: int) -> None:
    parts = conversation(seed)
    messages: dict[str, str] = {}
    for part in parts:
        messages[part.name] = messages.get(part.name, "") + part.text
    with archive.opened("acme", parts) as prompt:
        for question in ("What is the maintenance code of the Halvorsen turbine?", "harbour lantern", "QX-7741-B"):
            found = prompt.search(question, 5)
            assert found.passages
            for passage in found.passages:
                text = messages[passage.document_id]
                assert passage.text and text[passage.span.start : passage.span.end] == passage.text
                assert GAP not in passage.text
                for span in (passage.evidence, passage.nearest and passage.nearest.span):
                    assert span is None or passage.span.start <= span.start < span.end <= passage.span.end
                for value in passage.values:
                    assert text[value.span.start : value.span.end] in passage.text
                assert all(copy.span.end <= len(messages[copy.document_id]) for copy in passage.also)
        assert any("QX-7741-B" in passage.text for passage in found.passages)


def test_a_key_leads_to_its_message(archive: PromptArchive) -> None:
    parts = [PromptPart("messages.0", 0, prose(300, 1)), PromptPart("messages.4", 70, f"Anyway.\n\n{CODE}")]
    with archive.opened("acme", parts) as prompt:
        passage = prompt.search("Where does QX 7741 B belong?", 5).passages[0]
    assert (passage.document_id, passage.found_by[0]) == ("messages.4", "key")
    assert passage.evidence == Span(70 + 9, 70 + 9 + len(CODE))


def held(archive: PromptArchive) -> list[int]:
    """Numbers of the texts that are held: each is given once."""
    return [text.record.number for text in archive._held.values()]


def ask(archive: PromptArchive, *texts: str, tenant: str = "acme") -> OpenPrompt:
    parts = [PromptPart(f"messages.{at}", 0, text) for at, text in enumerate(texts)]
    with archive.opened(tenant, parts) as prompt:
        prompt.search("lantern", 3)
    return prompt


def test_of_a_conversation_that_goes_on_only_what_is_new_is_indexed(archive: PromptArchive) -> None:
    pasted = prose(700, 2)
    assert len(pasted) > TEXT_CHARACTERS
    ask(archive, "Be brief.", pasted)
    (first,) = held(archive)
    ask(archive, "Be brief.", pasted, "What is it about?", "Lanterns.")
    assert held(archive)[0] == first and len(held(archive)) == 2
    ask(archive, "Be brief.", pasted)
    assert first in held(archive) and len(held(archive)) == 2


def test_nobody_is_spared_work_by_what_another_tenant_sent(archive: PromptArchive) -> None:
    ask(archive, prose(50, 3))
    ask(archive, prose(50, 3), tenant="other")
    assert len(held(archive)) == 2


def test_the_oldest_goes_when_room_is_wanted_and_its_memory_comes_back(tmp_path: Path) -> None:
    texts = [prose(400, seed) for seed in range(4)]
    archive = PromptArchive(tmp_path / "prompts", HashEmbedder(dimension=32))
    empty = archive.num_bytes
    ask(archive, texts[0])
    one = archive.num_bytes - empty
    # Room for two and for what the next is taken to need, at most.
    archive._max_bytes = one * 5 // 2 + needed(len(texts[0]))
    for text in texts[1:]:
        ask(archive, text)
        assert archive.num_bytes - empty <= archive._max_bytes
    ask(archive, texts[2])  # is not the oldest any more
    assert archive.num_evicted == 1 and held(archive) == [2, 4, 3]
    assert 0 <= archive.num_bytes - empty - sum(text.num_bytes for text in archive._held.values()) < 1 << 16
    archive._max_bytes = 0
    ask(archive, texts[0])  # alone it may be larger than the bound, but it is not kept
    assert held(archive) == [] and archive.num_bytes == empty
    assert archive.num_bytes == archive._store.memory.num_bytes


def test_what_others_ask_stays_and_the_refusal_names_pool_and_bytes(tmp_path: Path) -> None:
    text = prose(300, 5)
    archive = PromptArchive(tmp_path / "prompts", HashEmbedder(dimension=32), max_bytes=needed(len(text)))
    with archive.opened("acme", [PromptPart("messages.0", 0, text)]) as prompt:
        with pytest.raises(PromptMemoryFull) as full, archive.opened("acme", [PromptPart("m", 0, prose(300, 6))]):
            pass
        assert "'prompts'" in str(full.value) and str(full.value.max_bytes) in str(full.value)
        assert full.value.used_bytes == prompt.text_bytes + prompt.index_bytes
        assert prompt.search("lantern", 3).passages
    ask(archive, prose(300, 6))


def test_room_is_promised_to_a_whole_prompt_before_any_of_it_is_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that do not fit together one is refused at once, and the other is indexed to its end."""
    parts = {
        name: [PromptPart(f"messages.{at}", 0, prose(700, seed + at)) for at in range(3)]
        for name, seed in (("one", 20), ("two", 30))
    }
    whole = {name: needed(sum(len(part.text) for part in each)) for name, each in parts.items()}
    archive = PromptArchive(tmp_path / "prompts", HashEmbedder(dimension=32), max_bytes=max(whole.values()) * 3 // 2)
    indexed, texts = archive._indexed, list[int]()
    refusals: list[PromptMemoryFull] = []

    def index(one: Sequence[PromptPart]) -> HeldText:
        texts.append(len(texts))
        if len(texts) == 1:
            # The second comes while the first has a text of three.
            with pytest.raises(PromptMemoryFull) as full, archive.opened("acme", parts["two"]):
                pass
            refusals.append(full.value)
        return indexed(one)

    monkeypatch.setattr(archive, "_indexed", index)
    with archive.opened("acme", parts["one"]) as prompt:
        assert len(prompt.texts) == 3
    (refusal,) = refusals
    assert (refusal.needed_bytes, refusal.used_bytes) == (whole["two"], whole["one"])
    assert len(texts) == 3, "of the second nothing was indexed"
    with archive.opened("acme", parts["two"]) as prompt:
        assert len(prompt.texts) == 3
    assert archive._promised == {} and not +archive._wanted


def test_many_at_once_stay_within_the_bound_and_nobody_loses_what_he_asks(tmp_path: Path) -> None:
    """From several threads; what two ask is promised once, the oldest that nobody asks goes first."""
    texts = [prose(120, seed) for seed in range(8)]
    most = 3 * needed(max(map(len, texts)))
    archive = PromptArchive(tmp_path / "prompts", HashEmbedder(dimension=32), max_bytes=most)
    found, refused, beyond = Counter[int](), Counter[int](), list[int]()

    def ask_often(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(12):
            number = dice.randrange(len(texts))
            try:
                with archive.opened("acme", [PromptPart("messages.0", 0, texts[number])]) as prompt:
                    assert all(each in archive._held.values() for each in prompt.texts), "it is asked, and was dropped"
                    assert prompt.search("lantern", 2).passages
                    held = sum(each.num_bytes for each in [*archive._held.values()])
                    beyond.append(max(0, held - most))
                found[number] += 1
            except PromptMemoryFull as full:
                assert 0 < full.used_bytes <= most and full.used_bytes + full.needed_bytes > most
                refused[number] += 1

    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(ask_often, seed) for seed in range(4)]:
            each.result()
    assert sum(found.values()) + sum(refused.values()) == 48 and found and not any(beyond)
    assert archive._promised == {} and not +archive._wanted
    assert archive.num_bytes == archive._store.memory.num_bytes + sum(
        each.shelf.num_bytes + (each.vectors.num_bytes if each.vectors else 0) for each in archive._held.values()
    )


def test_nothing_is_on_the_disk(tmp_path: Path) -> None:
    leftover = tmp_path / "prompts" / "tmp_crash"
    leftover.mkdir(parents=True)
    archive = PromptArchive(tmp_path / "prompts", HashEmbedder(dimension=32))
    assert not leftover.exists()
    with archive.opened("acme", [PromptPart("messages.0", 0, prose(900, 7, CODE))]) as prompt:
        assert [path for path in (tmp_path / "prompts").rglob("*") if path.is_file()] == []
        assert prompt.index_bytes > prompt.text_bytes // 4
        assert CODE in prompt.search("Which maintenance code has the Halvorsen turbine?", 3).passages[0].text


def test_a_short_prompt_is_compared_by_meaning_as_a_whole_and_its_vectors_are_made_once(tmp_path: Path) -> None:
    calls: list[int] = []

    class Counting(HashEmbedder):
        def embed_passages(self, texts):  # type: ignore[no-untyped-def]
            calls.append(len(texts))
            return super().embed_passages(texts)

    archive = PromptArchive(tmp_path / "prompts", Counting(dimension=32), most_rows=40)
    few, many = [PromptPart("m", 0, prose(20, 8, CODE))], [PromptPart("m", 0, prose(200, 9, CODE))]
    for parts, is_whole in ((few, True), (many, False)):
        with archive.opened("acme", parts) as prompt:
            rows = len(prompt.texts[0].shelf.row_spans)
            del calls[:]
            first, second = (prompt.search("Halvorsen turbine", 3) for _ in range(2))
            assert first.passages == second.passages
            made = [count for count in calls if count > 1]  # a question is a text by itself
            assert (made == [rows]) == is_whole and sum(made) < 2 * rows
            assert ("by meaning what has words" in first.reason) != is_whole
            vectors = prompt.texts[0].vectors
            assert (vectors is not None and len(vectors) == rows) == is_whole
            assert archive.num_bytes >= prompt.text_bytes + prompt.index_bytes
