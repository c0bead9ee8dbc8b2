"""Prompts that begin like others: taken up where those were kept, kept where others may want them."""

from array import array
from collections.abc import Collection

import torch
from torch import Tensor

from model.cache.checkpoint import Checkpoint
from model.cache.checkpoints import Checkpoints, Found
from model.cache.held import Held
from model.cache.prefix_tree import common_length
from model.cache.state_pool import StatePool
from model.engine.placement import LEAST_TOKENS
from model.engine.request import PrefixOutcome
from model.engine.sequence import Sequence
from model.engine.step import PlannedChunk
from model.hybrid import HybridLM
from model.policy import AttentionPolicy

# Surprisals are rounded to this part of a bit, so that their sum does not depend on where a prompt was cut.
INFORMATION_UNIT = 2.0**-24


class Recollection:
    """The part of a runner that reads no prompt twice. ``held`` is what the runner's sequences hold."""

    def __init__(
        self,
        model: HybridLM,
        states: StatePool,
        checkpoints: Checkpoints,
        held: dict[Sequence, Held],
        device: str,
        chunk_tokens: int,
    ) -> None:
        self._model = model
        self._states = states
        self._checkpoints = checkpoints
        self._held = held
        self._device = device
        self._chunk_tokens = chunk_tokens
        # The last row of prompts that were recalled to their end, until their first token is drawn.
        self._rows: dict[Sequence, Tensor] = {}

    @property
    def sequences(self) -> Collection[Sequence]:
        """Those whose whole prompt was recalled, and whose first token is not drawn yet."""
        return self._rows.keys()

    def first_logits(self, sequence: Sequence) -> Tensor:
        """Logits [1, V] float32 for the first token after a prompt that was recalled to its end."""
        return self._model.logits(self._rows.pop(sequence)[None])

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._rows.pop(sequence, None)

    def was_read(self, planned: PlannedChunk, hidden: Tensor | None, surprisal: Tensor | None) -> None:
        """Add up what was told of the prompt, and keep the state where that is wanted."""
        group, before = planned.sequence.group, None
        if surprisal is not None and group.is_told(planned.end):
            bits = INFORMATION_UNIT * torch.round(surprisal / INFORMATION_UNIT)
            group.tell(planned.start + 1, bits.tolist())
            if group.information_bits is not None:
                # What the last row says is of a token that was not read yet.
                before = group.information_bits + float(bits[:-1].sum())
                group.information_bits = before + float(bits[-1])
        if planned.place is None:
            return
        self._checkpoints.make_room(1, 0)
        if self._states.num_free == 0:
            return
        assert hidden is not None, "what is kept is kept with its last row"
        held = self._held[planned.sequence].fork(self._states, is_cached=True)
        ids = planned.sequence.token_ids[: planned.end]
        self._checkpoints.keep(
            tree_of(planned.sequence),
            ids,
            planned.end,
            held,
            planned.place,
            hidden.to("cpu", copy=True),
            before,
            planned.sequence.selected_from(planned.end),
        )
        group.kept(planned.end)

    def begin(self, sequence: Sequence, beside: Collection[Sequence]) -> None:
        """Take up the beginning of a new sequence's prompt, as far as it is there, and tell its group.

        ``beside`` are those that run: where the prompt parts from one of theirs is worth keeping, too.
        """
        group, request = sequence.group, sequence.group.request
        num_common = 0
        if not self._is_sought(sequence):
            outcome = PrefixOutcome("miss", "not_wanted" if request.keep.nothing else "prompt_logprobs")
        else:
            found = self._find(sequence)
            alike = [each for each in beside if tree_of(each) == tree_of(sequence)]
            shared = [common_length(each.token_ids, sequence.token_ids, 0) for each in alike]
            num_common = max(found.num_common, *shared, 0)
            outcome = PrefixOutcome("miss", found.reason)
            if found.checkpoint is not None:
                is_there = self._take_up(sequence, found.checkpoint)
                reused = PrefixOutcome("hit", found.reason, found.checkpoint.num_tokens)
                outcome = reused if is_there else PrefixOutcome("miss", "no_room")
        if request.measure_information and group.information_bits is None:
            group.information_bits = 0.0
        group.begin(outcome, num_common, self._chunk_tokens)

    def advance(self, sequence: Sequence) -> None:
        """Skip what another sequence has read meanwhile: prompts that begin alike are read together, in turns."""
        num_read = sequence.num_read
        if not self._is_sought(sequence):
            return
        found = self._find(sequence)
        checkpoint, before = found.checkpoint, self._held.get(sequence)
        if checkpoint is None or checkpoint.num_tokens - num_read < LEAST_TOKENS:
            return
        held = array("q") if before is None else before.table.archive.numbers
        if not self._checkpoints.archive_room.is_kept(held, checkpoint.archive_numbers):
            return
        if self._take_up(sequence, checkpoint):
            sequence.group.skip(num_read, checkpoint.num_tokens, found.reason)
            if before is not None:
                before.free(self._states)

    def num_archived_found(self, sequence: Sequence) -> int:
        """Blocks of the archive that ``begin`` would take up and that others or names hold."""
        found = self._find(sequence).checkpoint if self._is_sought(sequence) else None
        return 0 if found is None else self._checkpoints.num_archived_held(found)

    def _is_sought(self, sequence: Sequence) -> bool:
        """Whether the beginning of the prompt may be taken up where it is there."""
        request = sequence.group.request
        return not request.keep.nothing and request.sampling.prompt_logprobs is None

    def _find(self, sequence: Sequence) -> Found:
        """The deepest checkpoint that leaves to be read, or tells, whatever is wanted of the prompt."""
        request = sequence.group.request
        # The last row of what is recalled tells the token after it: see ``_recall``.
        first, ids = request.surprisals_from, sequence.token_ids
        ids = ids if first is None else ids[:first]
        return self._checkpoints.find(tree_of(sequence), ids, request.measure_information, sequence.selected_from)

    def _take_up(self, sequence: Sequence, checkpoint: Checkpoint) -> bool:
        """Let the sequence hold what is remembered after the first tokens of its prompt; False where no room is left
        for it."""
        held = self._checkpoints.open(checkpoint)
        if held is None:
            return False
        self._held[sequence] = held
        sequence.num_read = checkpoint.num_tokens
        self._recall(sequence, checkpoint.hidden, checkpoint.information_bits)
        return True

    def _recall(self, sequence: Sequence, hidden: Tensor | None, information_bits: float | None) -> None:
        """What the last row of a checkpoint says of the token after it."""
        group, num_read = sequence.group, sequence.num_read
        if sequence.is_recalled:
            assert hidden is not None, "a whole prompt is recalled with its last row"
            self._rows[sequence] = hidden.to(self._device)
        if group.request.measure_information and information_bits is not None:
            group.information_bits = information_bits
        if hidden is not None and not sequence.is_recalled and group.is_told(num_read):
            next_id = torch.tensor([sequence.token_ids[num_read]], device=self._device)
            told = self._model.surprisal(hidden.to(self._device)[None], next_id)
            bits = INFORMATION_UNIT * float(torch.round(told / INFORMATION_UNIT)[0])
            group.tell(num_read, [bits])
            if group.information_bits is not None:
                group.information_bits += bits


def tree_of(sequence: Sequence) -> tuple[str, AttentionPolicy]:
    """What a sequence may share its beginning with: texts of its tenant, read under its policy."""
    return sequence.group.tenant, sequence.policy
