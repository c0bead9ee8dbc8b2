"""Log probabilities of the model's own distribution, before anything a request asks of the sampler."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.engine.request import TokenLogprob


def token_logprobs(logits: Tensor, token_ids: Sequence[int], num_top: int) -> list[TokenLogprob]:
    """What each row of ``logits`` [T, V] float32 says of its token, and of the ``num_top`` most probable ones.

    Of equally probable tokens the lower id comes first.
    """
    if not token_ids:
        return []
    rows = torch.log_softmax(logits.float(), dim=-1)
    chosen = rows.gather(1, torch.tensor(token_ids, device=rows.device)[:, None])[:, 0].tolist()
    if num_top == 0:
        return [TokenLogprob(token_id, value) for token_id, value in zip(token_ids, chosen, strict=True)]
    # A stable sort and not topk, whose order among equals is not defined.
    values, places = torch.sort(rows, dim=-1, descending=True, stable=True)
    best = zip(places[:, :num_top].tolist(), values[:, :num_top].tolist(), strict=True)
    return [
        TokenLogprob(token_id, value, tuple(zip(ids, top, strict=True)))
        for token_id, value, (ids, top) in zip(token_ids, chosen, best, strict=True)
    ]
