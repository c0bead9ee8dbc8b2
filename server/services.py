"""The parts behind the routes, and the only place that chooses concrete ones.

Nothing heavy is imported with this module: torch comes in with ``load_services``, on a worker thread,
while the server already answers that it is loading.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from model.engine.stats import EngineStats
from model.errors import CheckpointNotFound
from model.policy import AttentionPolicy, PolicyName
from server.answers.answering import Answering
from server.answers.inquiry import Limits, ServedModel
from server.answers.prompt import ChatTokenizer
from server.bills.bill import Bookkeeper
from server.bills.forecast import Forecaster
from server.chat.grammar import Grammars
from server.completions.completing import Completing
from server.documents.erasing import Eraser
from server.documents.ingesting import Ingestor
from server.documents.reading import Reader
from server.documents.uploads import SPOOL_PREFIX
from server.embeddings.embedding import Embeddings
from server.engine_thread.bridge import EngineThread
from server.engine_thread.stepped import SteppedEngine
from server.files.chunking import Cutter
from server.files.files import Files
from server.logs import log_event
from server.long_prompts.long_prompt import LongPrompts
from server.long_prompts.pace import ReadingPace
from server.long_prompts.reading_beside import PromptReadings
from server.long_prompts.stream_rule import StreamRule
from server.measures.bill_collector import BillCollector
from server.metrics import Metrics
from server.responses.background import Background
from server.responses.conversations import Conversations
from server.responses.store import ResponseStore
from server.sessions.book import open_book
from server.sessions.traces import Traces
from server.sessions.vault import Vault
from server.settings import Settings

if TYPE_CHECKING:
    from model.config import EngineConfig, ModelConfig
    from retrieval.embedder import Embedder
    from retrieval.library import Library

logger = logging.getLogger(__name__)

EMBEDDED_MODEL = "fano-reader"
# A million tokens, and room for what is asked of them and answered.
WINDOW_CONTEXT_TOKENS = 1 << 20
INGEST_STOP_SECONDS = 10.0


class Services:
    """The use cases over a library and an engine. Owns both from ``start`` to ``stop``."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        library: "Library",
        engine: SteppedEngine,
        tokenizer: ChatTokenizer,
        model: ServedModel,
        forecaster: Forecaster,
        embedder: "Embedder | None" = None,
    ) -> None:
        """Without an ``embedder`` clients get the vectors of the one that comes with the installation."""
        from retrieval.embedder import MiniLMEmbedder
        from retrieval.prompt_archive import PromptArchive

        embedder = embedder or MiniLMEmbedder()
        self.grammars = Grammars(tokenizer)
        self.embeddings = Embeddings(embedder)
        self.prompts = PromptArchive(
            settings.data_dir / "prompts",
            embedder,
            settings.prompt_archive_bytes,
            settings.max_facts,
            settings.prompt_dense_rows,
        )
        self.library = library
        self.model = model
        self.forecaster = forecaster
        self.tokenizer = tokenizer
        self.pace = ReadingPace()

        def stepped(stats: EngineStats) -> None:
            metrics.stepped(stats)
            self.pace.stepped(stats)

        self.bridge = EngineThread(engine, stepped, metrics.delivered, settings.stalled_reader_seconds)
        limits = Limits(
            settings.chat_max_tokens,
            settings.answer_max_tokens,
            settings.max_request_seconds,
            settings.information,
            always_retrieve=settings.retrieval_gate == "always",
            certain_from=settings.retrieval_certainty,
            max_whole_prompt_tokens=settings.max_whole_prompt_tokens,
        )
        vault = Vault(settings.data_dir / "sessions", settings.session_disk_bytes)
        self.book, self.readings = open_book(vault, self.bridge, tokenizer, model.policy, library.get)
        self.traces = Traces(self.bridge)
        self.reader = Reader(
            library,
            self.bridge,
            tokenizer,
            self.readings,
            model.policy,
            model.max_context_tokens,
            settings.information,
            finds_surprises=settings.surprises,
        )
        self.reads_documents = settings.read_documents
        self.ingestor = Ingestor(library, self._document_done)
        self.long_prompts = LongPrompts(self.prompts, tokenizer, model, limits, metrics, settings.read_prompts)
        self.prompt_readings = PromptReadings(self.bridge, model.policy, settings.information)
        self.stream_rule = StreamRule(self.bridge, self.pace, model.policy, limits.max_whole_prompt_tokens)
        self.answering = Answering(
            library,
            self.bridge,
            tokenizer,
            model,
            metrics,
            limits,
            self.book,
            self.readings,
            self.traces,
            self.long_prompts,
            self.stream_rule,
            self.prompt_readings,
        )
        self.conversations = Conversations(ResponseStore(settings.data_dir / "responses.sqlite3"), self.book)
        self.background = Background()
        self.completing = Completing(
            library, self.bridge, tokenizer, metrics, limits, self.stream_rule, self.long_prompts
        )
        self.spool_dir = settings.data_dir / "uploads"
        self.eraser = Eraser(library, self.readings, self.traces)
        self.files = Files(
            settings.data_dir,
            self.spool_dir,
            library,
            self.ingestor,
            self.eraser,
            Cutter(tokenizer),
            settings.read_documents,
        )
        disk = {"files": self.files.disk_bytes, "responses": self.conversations.disk_bytes}
        self.bookkeeper = Bookkeeper(
            self.bridge.stats, library.stats, self.book.stats, disk, lambda: self.prompts.num_bytes
        )
        metrics.registry.register(BillCollector(metrics, self.bookkeeper, settings, model.state_recall_bits))

    async def start(self) -> None:
        """Set right what a crash left; then start the engine's and the ingestion's threads, and the work on files and
        the reader on the running event loop."""
        await anyio.to_thread.run_sync(self._recover)
        self.bridge.start()
        self.ingestor.start()
        self.files.start()
        if self.reads_documents:
            self.reader.start()

    async def aclose(self) -> None:
        """End the reader and both threads and close the library. Waits for a step of each."""
        await self.background.stop()
        await self.reader.stop()
        await self.prompt_readings.stop()
        await self.files.stop()
        await anyio.to_thread.run_sync(self._stop)

    def _recover(self) -> None:
        for cut_off in self.spool_dir.glob(f"{SPOOL_PREFIX}*"):
            cut_off.unlink(missing_ok=True)
        self.conversations.recover()
        self.files.recover()

    def _document_done(self) -> None:
        """On the worker's thread: the ingestor is done with a document, or one is to be read."""
        self.reader.wake()
        self.files.wake()

    def _stop(self) -> None:
        at_rest = self.ingestor.stop(INGEST_STOP_SECONDS)
        self.files.close()
        self.bridge.stop()
        self.conversations.close()
        self.prompts.close()
        # A library that is in use must not be closed; the end of the process lets go of it just as well.
        if at_rest:
            self.library.close()


def load_services(settings: Settings, metrics: Metrics) -> Services:
    """Load the model and open the library, as the settings say. Takes seconds; raises what either refuses."""
    from model.config import ModelConfig
    from model.engine.loader import load_engine
    from model.weights import resolve_checkpoint

    directory = resolve_checkpoint(settings.model) if settings.model else embedded_checkpoint()
    checkpoint = ModelConfig.from_pretrained(directory)
    config = engine_config(settings, checkpoint)
    engine, report = load_engine(directory, config)
    log_event(logger, "model loaded", report=str(report))
    stats = engine.stats()
    model = ServedModel(
        name=settings.model if settings.model and not Path(settings.model).is_dir() else directory.name,
        created=int((directory / "config.json").stat().st_mtime),
        policy=engine.policy,
        dtype=stats.build.dtype,
        max_context_tokens=stats.max_context_tokens,
        reads=checkpoint.reads,
        state_recall_bits=checkpoint.state_recall_bits,
    )
    embedder = default_embedder(settings)
    library = open_library(settings, engine.tokenizer.count, embedder)
    forecaster = Forecaster(checkpoint, config)
    return Services(settings, metrics, library, engine, engine.tokenizer, model, forecaster, embedder)


def default_embedder(settings: Settings) -> "Embedder":
    """The embedder that comes along. It shares the cores with the engine and the event loop, so it gets half."""
    from retrieval.embedder import MiniLMEmbedder

    return MiniLMEmbedder(threads=max(1, num_threads(settings) // 2))


def open_library(
    settings: Settings, count_tokens: Callable[[str], int], embedder: "Embedder | None" = None
) -> "Library":
    """The library in the data directory, with the embedder that comes along unless one is given. Raises what
    ``Library.open`` raises, and ``IndexUnavailable``."""
    from retrieval.clustered_index import ClusteredIndex
    from retrieval.gpu_index import GpuIndex, check_device
    from retrieval.library import Library
    from retrieval.limits import Limits as LibraryLimits

    is_on_gpu = settings.index_device == "gpu"
    if is_on_gpu:
        check_device()
    limits = LibraryLimits(max_characters=settings.max_text_characters, max_facts=settings.max_facts)
    return Library.open(
        settings.data_dir,
        embedder or default_embedder(settings),
        count_tokens=count_tokens,
        limits=limits,
        has_reader=settings.read_documents,
        large_index=GpuIndex if is_on_gpu else ClusteredIndex,
    )


def embedded_checkpoint() -> Path:
    """The model that comes with Fano: in the wheel beside this file, in a checkout beside this package."""
    here = Path(__file__).resolve().parent
    for weights in (here / "weights", here.parent / "weights"):
        if (weights / EMBEDDED_MODEL / "config.json").is_file():
            return weights / EMBEDDED_MODEL
    raise CheckpointNotFound(
        f"the embedded model {EMBEDDED_MODEL!r} is not in this installation; set FANO_MODEL to a checkpoint directory"
    )


def engine_config(settings: Settings, checkpoint: "ModelConfig") -> "EngineConfig":
    """How the settings want the checkpoint to be run; what they leave open is the checkpoint's own."""
    from model.config import Dtype, EngineConfig
    from model.engine.loader import choose_device, choose_dtype

    policy = attention_policy(settings, checkpoint.policy)
    device, _ = choose_device()
    default = EngineConfig()
    context = default.max_context_tokens if policy.name is PolicyName.FULL else WINDOW_CONTEXT_TOKENS
    return EngineConfig(
        num_slots=settings.max_sequences,
        max_context_tokens=settings.max_context_tokens or context,
        device=device,
        dtype=choose_dtype(device)[0] if settings.dtype == "auto" else Dtype(settings.dtype),
        policy=policy,
        max_waiting=settings.max_queue,
        saved_bytes=settings.saved_bytes,
        session_bytes=settings.session_bytes,
        archive_bytes=settings.archive_bytes,
        archive_disk_bytes=settings.archive_disk_bytes,
        archive_directory=settings.data_dir / "archive",
        archive_index_blocks=settings.archive_index_blocks,
        num_checkpoint_slots=settings.checkpoint_slots,
        num_threads=num_threads(settings),
    )


def attention_policy(settings: Settings, own: AttentionPolicy) -> AttentionPolicy:
    """The checkpoint's policy with the settings' parts in place of its own."""
    return AttentionPolicy(
        name=own.name if settings.policy is None else PolicyName(settings.policy),
        sinks=own.sinks if settings.sinks is None else settings.sinks,
        window=own.window if settings.window is None else settings.window,
        select=own.select if settings.select is None else settings.select,
    )


def num_threads(settings: Settings) -> int:
    """Threads of the matrix work: the setting, else the cores this process may use."""
    return settings.threads or len(os.sched_getaffinity(0))
