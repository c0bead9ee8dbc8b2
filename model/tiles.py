"""Sizes that bound the temporaries of the reference kernels, whatever the length of a sequence. No torch.

The kernels work in tiles of these sizes and the memory plan counts with them, so the two cannot drift apart.
"""

# Tokens whose decay factors the scan forms at once.
SCAN_TILE_TOKENS = 64

# Attention: query tokens per tile, key blocks per tile, and elements of one tile of scores.
QUERY_TILE_TOKENS = 256
KEY_TILE_BLOCKS = 64
SCORE_TILE_ELEMENTS = 1 << 19

# Runs of neighbouring key blocks are read in place if they are at least this long on average, else gathered.
RUN_BLOCKS = 8


def key_tile_blocks(num_score_rows: int, block_tokens: int) -> int:
    """Key blocks in one tile of scores with ``num_score_rows`` rows: query tokens times heads."""
    return max(1, min(KEY_TILE_BLOCKS, SCORE_TILE_ELEMENTS // (num_score_rows * block_tokens)))


# Most prompt tokens of a step when the logits of each are wanted: a row of them is as long as the vocabulary.
PROMPT_LOGPROB_ROWS = 64
