"""Decode steps recorded once and replayed: a step of a hundred small kernels is launched as one.

A recording fits steps of at most so many sequences that see at most so many blocks each. Rows that are left over are
padding: they have no slot and no row in the pool, so they write nothing that anybody reads. What does not fit, and what
is not a plain decode step, is read as ever; so is a step in which a token selects or a block leaves for the archive,
for the host has its part in each layer of it. This was not run on a device yet; ``verified`` replays nothing that it
has not seen to agree.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from model.batch import Batch, SequenceChunk
from model.cache.block_pool import BlockPool
from model.cache.state_pool import StatePool
from model.hybrid import HybridLM, Reading
from model.kernels.triton.tables import num_visible_blocks
from model.layers.feed_forward import GatedFeedForward
from model.layers.fetching import is_fetching
from model.policy import AttentionPolicy

if TYPE_CHECKING:
    from model.kernels.triton.frame import DecodeFrame

logger = logging.getLogger(__name__)

# Blocks that a sequence sees in the narrowest recording: the default window and its sinks, with room.
LEAST_WIDTH = 64
# Replayed and launched steps may take their products from other kernels of the vendor's library, for other numbers of
# rows. Largest differences in units of the largest value, by the bytes of a weight.
TOLERANCES = {4: 1e-4, 2: 2.0**-5}
PROBED_TOKENS = (1, 2, 3)


class Recorder(Protocol):
    """Records what is run; a replay does the same again, with what then lies in the same tensors."""

    def record(self, run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """What ``run`` returned, which each replay overwrites, and the replay."""
        ...


class CudaRecorder:
    """CUDA graphs that share the memory of their temporaries, since one is replayed at a time."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._pool: Any = None

    def record(self, run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """See :class:`Recorder`. Raises RuntimeError where something of ``run`` cannot be recorded."""
        with torch.cuda.device(self._device):
            # Once beforehand and aside, as torch wants it: kernels are compiled and libraries take their workspace.
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                run()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                result = run()
        self._pool = graph.pool()
        return result, graph.replay


class Recording(NamedTuple):
    """One size of step: where its numbers go, the logits [rows, V] that a replay leaves, and the replay."""

    frame: "DecodeFrame"
    logits: Tensor
    replay: Callable[[], None]


class DecodeGraphs:
    """The recordings of one model over its pools, each made when the first step of its size comes.

    ``num_replayed`` steps were replayed.
    """

    def __init__(
        self,
        model: HybridLM,
        states: StatePool,
        blocks: BlockPool,
        recorder: Recorder,
        max_rows: int,
    ) -> None:
        assert model.kernels.frame is not None, f"kernels {model.kernels.name} have no frames"
        self._model, self._states, self._blocks = model, states, blocks
        self._make_frame = model.kernels.frame
        self.recorder = recorder
        # Powers of two and the most there can be.
        self.row_counts = sorted({*(1 << power for power in range(max_rows.bit_length())), max_rows})
        # None where a recording was tried and failed.
        self._recordings: dict[tuple[int, int], Recording | None] = {}
        self.num_replayed = 0

    @staticmethod
    def verified(
        model: HybridLM, states: StatePool, blocks: BlockPool, device: str, max_rows: int
    ) -> "tuple[DecodeGraphs | None, str]":
        """``(graphs, reason)``, or ``(None, reason)`` where there are none or a replay differs from a launched step."""
        if not device.startswith("cuda") or model.kernels.frame is None:
            return None, f"kernels {model.kernels.name} on {device} have none"
        if not all(isinstance(layer.ffn, GatedFeedForward) for layer in model.layers):
            return None, "experts are chosen by the host"
        graphs = DecodeGraphs(model, states, blocks, CudaRecorder(device), max_rows)
        try:
            found = graphs.disagreement()
        except RuntimeError as error:
            found = str(error)
        return (None, found) if found else (graphs, "replayed steps agree with launched ones")

    def read(self, batch: Batch) -> Reading:
        """As :meth:`model.hybrid.HybridLM.read`; a step that fits a recording is replayed."""
        size = self.size_of(batch)
        recording = None if size is None else self._recording(*size)
        if recording is None:
            return self._model.read(batch, self._states, self._blocks)
        self.num_replayed += 1
        logits = self._replayed(recording, batch)
        return Reading(logits, logits.new_empty((0, self._model.config.hidden_size)))

    def size_of(self, batch: Batch) -> tuple[int, int] | None:
        """Rows and width of the smallest recording that ``batch`` fits; None where it is no plain decode step."""
        count = batch.num_decodes
        if not 0 < count == batch.num_tokens == batch.logits_rows.shape[0] <= self.row_counts[-1]:
            return None
        if batch.next_ids is not None or is_fetching(batch):
            return None
        visible = max(map(num_visible_blocks, batch.first_positions, batch.policies))
        width = max(LEAST_WIDTH, 1 << (visible - 1).bit_length())
        return next(rows for rows in self.row_counts if rows >= count), width

    def disagreement(self) -> str | None:
        """Decode a few tokens launched and replayed, at every number of rows; what differs, or None.

        Needs a free slot and a free block, and gives them back.
        """
        slot, taken = self._states.allocate(), self._blocks.allocate(1)
        try:
            expected = self._probe(slot, taken, self._launched)
            for num_rows in self.row_counts:
                self._states.zero(slot)
                recording = self._recording(num_rows, LEAST_WIDTH)
                if recording is None:
                    return f"a step of {num_rows} rows cannot be recorded"
                found = self._probe(slot, taken, partial(self._replayed, recording))
                if difference := self._difference(found, expected):
                    return f"replayed at {num_rows} rows, {difference}"
        finally:
            self._states.free(slot)
            self._blocks.free(taken)
        return None

    def _recording(self, num_rows: int, width: int) -> Recording | None:
        size = num_rows, width
        if size not in self._recordings:
            try:
                self._recordings[size] = self._recorded(*size)
            except RuntimeError as error:
                logger.warning("decode steps of %d rows and %d blocks are not replayed: %s", *size, error)
                self._recordings[size] = None
        return self._recordings[size]

    def _recorded(self, num_rows: int, width: int) -> Recording:
        frame = self._make_frame(num_rows, width)

        def run() -> Tensor:
            # A new frame holds padding alone, so this writes nothing to the pools.
            with frame.entered() as batch:
                return self._model.read(batch, self._states, self._blocks).logits

        with torch.inference_mode():
            logits, replay = self.recorder.record(run)
        return Recording(frame, logits, replay)

    def _launched(self, batch: Batch) -> Tensor:
        return self._model.read(batch, self._states, self._blocks).logits

    def _replayed(self, recording: Recording, batch: Batch) -> Tensor:
        with torch.inference_mode():
            recording.frame.load(batch)
            recording.replay()
            # The next replay overwrites them.
            return recording.logits[: batch.num_tokens].clone()

    def _probe(self, slot: int, taken: Sequence[int], read: Callable[[Batch], Tensor]) -> dict[str, Tensor]:
        """Logits, states, keys and values after a few tokens from a fresh state."""
        logits = []
        for position, token in enumerate(PROBED_TOKENS):
            token %= self._model.config.vocab_size
            chunk = SequenceChunk([token], position, slot, taken, AttentionPolicy(), is_decode=True)
            logits.append(read(Batch.pack([chunk], str(self._states.ssm.device))))
        rows = slice(0, len(PROBED_TOKENS))
        pools = {"keys": self._blocks.keys, "values": self._blocks.values}
        memory = {name: pool[:, taken[0], rows].clone() for name, pool in pools.items()}
        states = {"ssm": self._states.ssm[:, slot].clone(), "conv": self._states.conv[:, slot].clone()}
        return {"logits": torch.cat(logits)} | states | memory

    def _difference(self, found: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
        tolerance = TOLERANCES[self._model.embedding.weight.itemsize]
        for name, want in expected.items():
            if not want.numel():
                continue
            scale = max(float(want.abs().max()), 1e-30)
            difference = float((found[name] - want).abs().max()) / scale
            # Not the other way round: NaN is a difference, too.
            if not difference <= tolerance:
                return f"{name} differ by {difference:.1e} of the largest value, expected at most {tolerance:.0e}"
        return None
