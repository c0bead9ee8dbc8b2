"""What ``fano ask`` and ``fano ingest`` show: progress on standard error, what came of it on standard output."""

from collections.abc import Sequence
from textwrap import indent
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from retrieval.passage import Document, DocumentStatus
from server.schemas import AnswerView, CitationView, SourceView

INDENT = 4


class ReadingProgress:
    """A bar per document, gone when the work is done; nothing where standard error is not a terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._words = self._bars.add_task("", total=None)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, words: str) -> None:
        """What is being done that has no measure, once all that has one is done."""
        for document_id in [*self._tasks]:
            self.forget(document_id)
        self._bars.update(self._words, description=words, visible=True)

    def forget(self, document_id: str) -> None:
        """Show this document no more."""
        if (task := self._tasks.pop(document_id, None)) is not None:
            self._bars.remove_task(task)

    def show(self, document: Document, place: str = "") -> None:
        """How far a document is; ``place`` is put before its name."""
        self._bars.update(self._words, visible=False)
        if document.id not in self._tasks:
            self._tasks[document.id] = self._bars.add_task("", total=1)
        progress = document.progress
        self._bars.update(
            self._tasks[document.id],
            description=f"{place}{document.name}: {progress.stage}",
            total=max(1, progress.total),
            completed=progress.done,
        )


def print_answer(view: AnswerView, console: Console | None = None) -> None:
    """The answer, then the sources it quotes, or the best one when it quotes none; quotes stand out."""
    console = console or Console(highlight=False)
    console.print(Text(view.answer), soft_wrap=True)
    cited = {citation.source for citation in view.citations}
    shown = [source for source in view.sources if source.number in cited] or view.sources[:1]
    for source in shown:
        console.print()
        console.print(Text(_place(source), style="dim"), soft_wrap=True)
        quotes = [citation for citation in view.citations if citation.source == source.number]
        if console.is_terminal:
            console.print(Padding(_marked(source, quotes), (0, 0, 0, INDENT)))
        else:  # Whoever reads a pipe wants lines as they are.
            console.print(Text(indent(source.text, " " * INDENT)), soft_wrap=True)
    if left := len(view.sources) - len(shown):
        console.print()
        console.print(Text(f"{left} more found; --json shows all of them", style="dim"), soft_wrap=True)


def print_documents(documents: Sequence[Document], console: Console | None = None) -> None:
    """A line for each: id, status, characters and name."""
    console = console or Console(highlight=False)
    for document in documents:
        style = "red" if document.status is DocumentStatus.FAILED else None
        size = "" if document.num_characters is None else f"{document.num_characters:,}"
        told = Text.assemble((document.id, "bold"), "  ", (f"{document.status.value:<8}", style or "green"), "  ")
        console.print(told.append(f"{size:>12}  {document.name}"), soft_wrap=True)


def _place(source: SourceView) -> str:
    page = f"page {source.page}, " if source.page is not None else ""
    return f"[{source.number}] {source.name}, {page}characters {source.start} to {source.end}"


def _marked(source: SourceView, quotes: list[CitationView]) -> Text:
    text = Text(source.text)
    for quote in quotes:
        text.stylize("bold", quote.start - source.start, quote.end - source.start)
    return text
