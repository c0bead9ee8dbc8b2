"""Logits in, one token id for each sequence out, for the whole batch at once.

In this order: repetition penalty, presence and frequency penalties, token biases; then the greedy choice, or
temperature, top-k, top-p and min-p, each on what the one before left, as transformers' warpers are ordered. What a
sequence draws depends on its own row, parameters and generator alone, whatever else is in the batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.engine.logprobs import token_logprobs
from model.engine.request import SamplingParams, TokenLogprob

# At this temperature the nearest two float32 are so far apart that the lower is never drawn, and the farthest two
# still have a finite distance.
LOWEST_TEMPERATURE = 1e-60


class SequenceSampler:
    """What the drawing of one choice remembers: a generator of its own, and the tokens that penalties look at.

    The same seed and logits give the same tokens; every other seed and every other choice has a generator of its own.
    Choice 0 draws what the request draws that asks for one choice. Without a seed a generator starts from the operating
    system's entropy.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], choice: int = 0) -> None:
        self.params = params
        # Seeds from -2**63 to 2**64 - 1 take 65 bits. Of torch.Generator's seed only 32 would count.
        key = None if params.seed is None else choice << 65 | params.seed % 2**65
        self._generator = np.random.Philox(key=key)
        self._counts: _Counts | None = None
        if params.presence_penalty or params.frequency_penalty:
            self._counts = _Counts()
        self._seen: _Counts | None = None
        if params.repetition_penalty != 1:
            self._seen = _Counts()
            for token_id in dict.fromkeys(prompt_ids):
                self._seen.add(token_id)
        bias = dict(params.logit_bias)
        self._bias_ids = torch.tensor(list(bias), dtype=torch.int64)
        self._bias = torch.tensor(list(bias.values()), dtype=torch.float32)

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before a token is chosen."""
        return self._counts is not None or self._seen is not None or self._bias.numel() > 0

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken."""
        return self.params.temperature == 0

    @property
    def truncates(self) -> bool:
        """Whether improbable tokens are left out."""
        params = self.params
        return params.top_k > 0 or params.top_p < 1 or params.min_p > 0

    def adjust(self, row: Tensor) -> None:
        """Apply penalties and biases to the logits [V] in place."""
        params, device = self.params, row.device
        if self._seen is not None and self._seen.size:
            ids = self._seen.ids.to(device)
            # A penalty may be any double, and what it makes of a logit more than float32 can hold.
            values = row[ids].double()
            penalty = params.repetition_penalty
            most = torch.finfo(row.dtype).max
            row[ids] = torch.where(values > 0, values / penalty, values * penalty).clamp(-most, most).to(row.dtype)
        if self._counts is not None and self._counts.size:
            counts = self._counts.counts.to(device)
            row[self._counts.ids.to(device)] -= params.frequency_penalty * counts + params.presence_penalty
        if self._bias.numel():
            row[self._bias_ids.to(device)] += self._bias.to(device)

    def uniform(self) -> float:
        """The next number of this choice's generator, from [0, 1)."""
        return (int(self._generator.random_raw()) >> 11) * 2.0**-53

    def record(self, token_id: int) -> None:
        """A token was drawn."""
        for counts in (self._counts, self._seen):
            if counts is not None:
                counts.add(token_id)


@dataclass(frozen=True, slots=True)
class Draw:
    """One row to draw from: with which sampler, and among which ids (ascending, not empty; None for all)."""

    sampler: SequenceSampler
    allowed: Sequence[int] | NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token, and its log probability where the request asks for them."""

    token_id: int
    logprob: TokenLogprob | None = None


def draw(logits: Tensor, draws: Sequence[Draw]) -> list[Drawn | ArithmeticError]:
    """A token from each row of ``logits`` [S, V] float32; an ArithmeticError in place of one whose row is no numbers.

    Ties go to the lower id. Records what was drawn in the samplers; ``logits`` are left as they are.
    """
    assert len(logits) == len(draws), f"{len(logits)} rows for {len(draws)} draws"
    places, peaks = _peaks(logits)
    # A peak passes on a NaN, so one comparison finds any.
    ids = _choose(logits, draws, [math.isfinite(peak) for peak in peaks], places)
    drawn: list[Drawn | ArithmeticError] = []
    for row, (one, token_id) in enumerate(zip(draws, ids, strict=True)):
        if token_id is None:
            drawn.append(ArithmeticError("the logits hold NaN or infinity"))
            continue
        one.sampler.record(token_id)
        num_top = one.sampler.params.logprobs
        told = None if num_top is None else token_logprobs(logits[row : row + 1], (token_id,), num_top)[0]
        drawn.append(Drawn(token_id, told))
    return drawn


def _choose(logits: Tensor, draws: Sequence[Draw], is_number: Sequence[bool], peaks: Sequence[int]) -> list[int | None]:
    """The id for each row, whose highest logit stands at ``peaks``; None where the row is no numbers."""
    chosen: list[int | None] = [None] * len(draws)
    rows = [row for row, fine in enumerate(is_number) if fine]
    adjusted = [row for row in rows if draws[row].sampler.adjusts]
    if adjusted:
        logits = logits.clone()
        for row in adjusted:
            draws[row].sampler.adjust(logits[row])
    # Rows of one kind go through the same operations, so a row's bits do not depend on who else is there.
    greedy = [row for row in rows if draws[row].allowed is None and draws[row].sampler.is_greedy]
    if adjusted and greedy:
        peaks, _ = _peaks(logits)
    for row in greedy:
        chosen[row] = peaks[row]
    for truncates in (False, True):
        sampled = [
            row
            for row in rows
            if draws[row].allowed is None
            and not draws[row].sampler.is_greedy
            and draws[row].sampler.truncates == truncates
        ]
        if sampled:
            found = _sample(_of(logits, sampled), [draws[row].sampler for row in sampled], truncates)
            for row, place in zip(sampled, found, strict=True):
                chosen[row] = place
    for row in rows:
        allowed, sampler = draws[row].allowed, draws[row].sampler
        if allowed is None:
            continue
        among = logits[row : row + 1, torch.as_tensor(allowed, dtype=torch.int64, device=logits.device)]
        if sampler.is_greedy or len(allowed) == 1:
            place = int(among.argmax())
        else:
            (place,) = _sample(among, [sampler], sampler.truncates)
        chosen[row] = int(allowed[place])
    return chosen


def _peaks(logits: Tensor) -> tuple[list[int], list[float]]:
    """Where the highest logit of each row stands, and what it is: NaN where the row holds one."""
    if not logits.is_cpu:
        values, places = logits.max(dim=1)
        return places.tolist(), values.tolist()
    # numpy's takes a tenth of the time of torch's; both give the first of equals.
    rows = logits.numpy()
    found = rows.argmax(axis=1)
    return found.tolist(), rows[np.arange(len(rows)), found].tolist()


def _of(logits: Tensor, rows: list[int]) -> Tensor:
    return logits if len(rows) == len(logits) else logits[rows]


def _sample(logits: Tensor, samplers: Sequence[SequenceSampler], truncates: bool) -> list[int]:
    """A place in each row of ``logits`` [R, V], by the inverse of its distribution function."""
    device, size = logits.device, logits.shape[1]
    places: Tensor | None = None
    if truncates:
        logits, places = torch.sort(logits, dim=1, descending=True, stable=True)
        peaks = logits[:, :1]
    else:
        peaks = logits.amax(dim=1, keepdim=True)
    temperatures = torch.tensor(
        [[max(each.params.temperature, LOWEST_TEMPERATURE)] for each in samplers], dtype=torch.float64, device=device
    )
    # Whole numbers, of which V fit 63 bits: their sums do not depend on the order, and that of floating-point numbers
    # depends on the number of rows and threads.
    unit = 2.0 ** (62 - size.bit_length())
    weights = torch.exp((logits.double() - peaks) / temperatures).mul_(unit).round_().long()
    if truncates:
        weights = _truncate(weights, [each.params for each in samplers])
    cumulative = weights.cumsum(dim=1)
    totals = cumulative[:, -1:]
    uniforms = torch.tensor([[each.uniform()] for each in samplers], dtype=torch.float64, device=device)
    # The product of a number just below one may be rounded up to the total.
    targets = torch.minimum((uniforms * totals).long(), totals - 1)
    found = torch.searchsorted(cumulative, targets, right=True)
    return (found if places is None else places.gather(1, found))[:, 0].tolist()


def _truncate(weights: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """The weights [R, V] int64, descending, with zeros for what top-k, top-p and min-p leave out."""
    device, size = weights.device, weights.shape[1]
    most = torch.tensor([[each.top_k or size] for each in params], device=device)
    weights = weights.masked_fill(torch.arange(size, device=device) >= most, 0)
    top_p = torch.tensor([[each.top_p] for each in params], dtype=torch.float64, device=device)
    cumulative = weights.cumsum(dim=1)
    # The token that crosses the border belongs to the set.
    is_beyond = (cumulative - weights) >= top_p * cumulative[:, -1:]
    is_beyond &= top_p < 1
    is_beyond[:, 0] = False
    min_p = torch.tensor([[each.min_p] for each in params], dtype=torch.float64, device=device)
    return weights.masked_fill(is_beyond | (weights < min_p * weights[:, :1]), 0)


class _Counts:
    """How often each of some ids occurred, in tensors that grow: adding one touches nothing else."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._ids = torch.empty(16, dtype=torch.int64)
        self._counts = torch.zeros(16)

    @property
    def size(self) -> int:
        return len(self._places)

    @property
    def ids(self) -> Tensor:
        return self._ids[: self.size]

    @property
    def counts(self) -> Tensor:
        return self._counts[: self.size]

    def add(self, token_id: int) -> None:
        place = self._places.setdefault(token_id, self.size)
        if place == len(self._ids):
            self._ids = torch.cat((self._ids, torch.empty_like(self._ids)))
            self._counts = torch.cat((self._counts, torch.zeros_like(self._counts)))
        self._ids[place] = token_id
        self._counts[place] += 1
