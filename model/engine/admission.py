"""What a request must be like to be accepted; everything is checked before anything of it runs. No torch."""

import math
from array import array
from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

from model.cache.plan import num_archived_blocks, num_resident_blocks
from model.engine.request import GenerationRequest, SamplingParams
from model.errors import InvalidRequest, NeverFits, PromptTooLong
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.tiles import MOST_SELECTED

SEED_RANGE = (-(2**63), 2**64 - 1)
MOST_LOGPROBS = 20
MOST_PENALTY = 2
MOST_BIAS = 100
# Eight bytes each, held until the request ends.
MOST_SURPRISALS = 1 << 16


class Admission:
    """The limits of one engine. ``max_slots``, ``max_blocks`` and ``max_archive_blocks`` are all there are,
    ``max_context_tokens`` prompt and answer together. A token may select ``max_fetched_blocks``, where they are fetched
    to a device."""

    def __init__(
        self,
        vocab_size: int,
        max_context_tokens: int,
        max_slots: int,
        max_blocks: int,
        chunk_tokens: int,
        max_archive_blocks: int = 0,
        archive_block_bytes: int = 0,
        max_fetched_blocks: int = 0,
    ) -> None:
        self.vocab_size = vocab_size
        self.max_context_tokens = max_context_tokens
        self._max_slots = max_slots
        self._max_blocks = max_blocks
        self._chunk_tokens = chunk_tokens
        self._max_archive_blocks = max_archive_blocks
        self._archive_block_bytes = archive_block_bytes
        self._max_fetched_blocks = max_fetched_blocks

    def check(self, request: GenerationRequest, policy: AttentionPolicy) -> None:
        """Raise ``InvalidRequest`` naming the field at fault, ``PromptTooLong`` with both numbers, or ``NeverFits``
        with the pool."""
        _check_sampling(request.sampling, least_tokens=0 if request.is_background else 1)
        for token_id, _ in request.sampling.logit_bias:
            if not 0 <= token_id < self.vocab_size:
                raise InvalidRequest("logit_bias", token_id, f"token ids from 0 to {self.vocab_size - 1}")
        self._check_prompt(request.prompt_ids)
        _check_evidence(request)
        _check_surprisals(request)
        self._check_choices(request)
        self._check_size(request, policy)
        self._check_archive(request, policy)

    def _check_prompt(self, prompt_ids: Sequence[int]) -> None:
        if not prompt_ids:
            raise InvalidRequest("prompt", "", "at least one token")
        # Of an array in one piece, which a million tokens come in, numpy finds them a hundred times as fast.
        ids = np.frombuffer(prompt_ids, dtype=np.intc) if _is_packed(prompt_ids) else np.array(prompt_ids)
        for extreme in (int(ids.min()), int(ids.max())):
            if not 0 <= extreme < self.vocab_size:
                raise InvalidRequest("prompt", extreme, f"token ids from 0 to {self.vocab_size - 1}")

    def _check_choices(self, request: GenerationRequest) -> None:
        if request.num_choices < 1:
            raise InvalidRequest("n", request.num_choices, "at least 1")
        if request.num_choices > self._max_slots:
            remedy = "ask for fewer choices or raise FANO_MAX_SEQUENCES"
            raise NeverFits("n", "state", request.num_choices, self._max_slots, remedy)
        if request.max_seconds is not None and not request.max_seconds > 0:
            raise InvalidRequest("max_seconds", request.max_seconds, "more than 0")

    def _check_size(self, request: GenerationRequest, policy: AttentionPolicy) -> None:
        num_prompt_tokens, max_tokens = len(request.prompt_ids), request.sampling.max_tokens
        num_tokens = num_prompt_tokens + max_tokens
        limit = self.max_context_tokens
        if policy.name is PolicyName.FULL:
            limit = min(limit, self._max_blocks * BLOCK_TOKENS)
        if num_tokens > limit:
            raise PromptTooLong(num_prompt_tokens, max_tokens, limit)
        needed = num_resident_blocks(policy, num_tokens, self._chunk_tokens)
        if needed > self._max_blocks:
            most = (self._max_blocks - needed) * BLOCK_TOKENS + policy.sinks + policy.window
            raise InvalidRequest("policy.window", policy.window, f"sinks and window of at most {most} tokens together")
        if request.num_choices * needed > self._max_blocks:
            remedy = f"ask for at most {self._max_blocks // needed} choices, or for fewer tokens"
            raise NeverFits("n", "kv", request.num_choices * needed, self._max_blocks, remedy)

    def _check_archive(self, request: GenerationRequest, policy: AttentionPolicy) -> None:
        if not 0 <= request.select_from:
            raise InvalidRequest("select_from", request.select_from, "at least 0")
        if policy.name is not PolicyName.ARCHIVE:
            return
        if not self._max_archive_blocks:
            expected = "full or window: this server has no archive, see FANO_ARCHIVE_BYTES"
            raise InvalidRequest("policy.name", policy.name.value, expected)
        if policy.select > MOST_SELECTED:
            raise InvalidRequest("policy.select", policy.select, f"at most {MOST_SELECTED} blocks")
        if policy.select > (most := self._max_fetched_blocks) > 0:
            expected = (
                f"at most {most} blocks, the FANO_SELECT of all FANO_MAX_SEQUENCES, which the device has room for"
            )
            raise InvalidRequest("policy.select", policy.select, expected)
        lengths = len(request.prompt_ids), request.sampling.max_tokens
        needed = sum(num_archived_blocks(policy, *lengths, request.num_choices))
        if needed > self._max_archive_blocks:
            remedy = "raise FANO_ARCHIVE_BYTES or FANO_ARCHIVE_DISK_BYTES, or read it under policy window"
            each = self._archive_block_bytes
            sizes = needed * each, self._max_archive_blocks * each
            raise NeverFits("policy.name", "kv_archive", *sizes, remedy, unit="bytes")


def _is_packed(prompt_ids: Sequence[int]) -> TypeGuard["array[int]"]:
    return isinstance(prompt_ids, array) and prompt_ids.typecode == "i"


def _check_sampling(sampling: SamplingParams, least_tokens: int) -> None:
    limits = (
        ("max_tokens", sampling.max_tokens >= least_tokens, f"at least {least_tokens}"),
        ("temperature", sampling.temperature >= 0 and math.isfinite(sampling.temperature), "0 or more"),
        ("top_p", 0 <= sampling.top_p <= 1, "between 0 and 1"),
        ("top_k", sampling.top_k >= 0, "0 (all tokens) or more"),
        ("min_p", 0 <= sampling.min_p <= 1, "between 0 and 1"),
        ("presence_penalty", abs(sampling.presence_penalty) <= MOST_PENALTY, "between -2 and 2"),
        ("frequency_penalty", abs(sampling.frequency_penalty) <= MOST_PENALTY, "between -2 and 2"),
        ("repetition_penalty", 0 < sampling.repetition_penalty < math.inf, "more than 0; 1 changes nothing"),
        ("logit_bias", all(abs(bias) <= MOST_BIAS for _, bias in sampling.logit_bias), "biases from -100 to 100"),
        ("logprobs", 0 <= (sampling.logprobs or 0) <= MOST_LOGPROBS, "between 0 and 20"),
        ("prompt_logprobs", 0 <= (sampling.prompt_logprobs or 0) <= MOST_LOGPROBS, "between 0 and 20"),
        ("seed", sampling.seed is None or SEED_RANGE[0] <= sampling.seed <= SEED_RANGE[1], "a number of 64 bits"),
        ("stop", all(sampling.stop), "strings that are not empty"),
    )
    for key, holds, expected in limits:
        if not holds:
            raise InvalidRequest(key, getattr(sampling, key), expected)


def _check_surprisals(request: GenerationRequest) -> None:
    first, num_tokens = request.surprisals_from, len(request.prompt_ids)
    if first is None:
        return
    least = max(1, num_tokens - MOST_SURPRISALS)
    if not least <= first < num_tokens:
        expected = f"a token after the first and of the last {MOST_SURPRISALS} of the prompt's {num_tokens}"
        raise InvalidRequest("surprisals_from", first, expected)


def _check_evidence(request: GenerationRequest) -> None:
    if request.max_spans < 1:
        raise InvalidRequest("max_spans", request.max_spans, "at least 1")
    if request.evidence is None:
        return
    if request.constraint is not None:
        raise InvalidRequest("constraint", "given", "no constraint beside evidence, which is one itself")
    if request.sampling.stop:
        # A stop string would cut a quotation at a place that is no border of a word.
        raise InvalidRequest("stop", request.sampling.stop, "no stop strings in a verbatim answer")
    for index, text in enumerate(request.evidence):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"evidence[{index}]", text[error.start], "text that UTF-8 can carry") from error
