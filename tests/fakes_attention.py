"""Paged attention to try kernels on, and what it is by its definition."""

import torch

from model.policy import PolicyName


class Attention:
    """Sequences that have read something, each under a policy, over a pool whose blocks are in no order."""

    def __init__(self, parts, heads, groups, width, device, dtype=torch.float32, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.parts = parts
        counts = [-(-(first + count) // 64) for first, count, _ in parts]
        free = torch.randperm(sum(counts) + 2, generator=generator).tolist()
        self.tables = [[free.pop() for _ in range(count)] for count in counts]
        for table, (first, _, policy) in zip(self.tables, parts, strict=True):
            hidden = range(policy.sinks // 64, policy.window_start(first) // 64)
            for place in hidden if policy.name is PolicyName.WINDOW else ():
                table[place] = -1
        shape = sum(counts) + 2, 64, groups, width
        self.keys, self.values = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2))
        num_tokens = sum(count for _, count, _ in parts)
        wide = torch.randn(num_tokens, heads * width + 5, generator=generator).to(device, dtype)
        self.queries = wide[:, : heads * width].view(num_tokens, heads, width)

    def attend(self, kernels, chosen=None, cut=0):
        """Of all sequences, or of the chosen one from its token ``cut`` on, or of its first ``-cut`` tokens."""
        counts = [count for _, count, _ in self.parts]
        starts = torch.tensor([0, *counts]).cumsum(0)
        if chosen is None:
            firsts = [first for first, _, _ in self.parts]
            step = starts, firsts, self.tables, [policy for _, _, policy in self.parts]
            return kernels.attend(self.queries, self.keys, self.values, *step)
        first, count, policy = self.parts[chosen]
        low, high = (cut, count) if cut >= 0 else (0, -cut)
        rows = self.queries[int(starts[chosen]) + low : int(starts[chosen]) + high]
        step = torch.tensor([0, high - low]), [first + low], [self.tables[chosen]], [policy]
        return kernels.attend(rows, self.keys, self.values, *step)


class Wide:
    """Attention by its definition, in float64."""

    def attend(self, queries, keys, values, starts, firsts, block_tables, policies):
        out = torch.empty_like(queries)
        heads, groups = queries.shape[1], keys.shape[2]
        for index, (first, table, policy) in enumerate(zip(firsts, block_tables, policies, strict=True)):
            for row in range(int(starts[index]), int(starts[index + 1])):
                position = first + row - int(starts[index])
                seen = [key for key in range(position + 1) if policy.sees(position, key)]
                rows = torch.tensor([table[key // 64] * 64 + key % 64 for key in seen], device=queries.device)
                key, value = (pool.flatten(0, 1)[rows].repeat_interleave(heads // groups, 1) for pool in (keys, values))
                scores = (queries[row] * key).sum(-1) * queries.shape[2] ** -0.5
                out[row] = (scores.softmax(0)[..., None] * value).sum(0)
        return out
