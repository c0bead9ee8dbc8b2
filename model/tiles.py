"""Sizes that bound the temporaries of a step, whatever the length of a sequence. No torch.

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

# The native step: tokens of a tile of attention, tokens from which on threads share what is narrow, and the floats
# between two pieces of a thread's workspace. As in kernels/native/arguments.h and fit.h.
ATTENTION_TILE_TOKENS = 32
SHARED_TOKENS = 16
DECODE_GAP_FLOATS = 16

# With fewer rows than this a float32 product on the CPU adds up in another order: measured with torch 2.13 below 4 rows
# on one thread and below 12 on two. In bfloat16 every number of rows gives the same bits, but oneDNN compiles and keeps
# a program for each, 150 to 300 KiB for each matrix: so their number is rounded up to one of a few.
STABLE_ROWS = 16
ROUND_ROWS = 64
FEW_ROWS = (STABLE_ROWS, 32)


# Means of runs of neighbours that sum a block of keys up for each key head: see kernels/selection.py.
SUMMARY_ROWS = 16


def summary_shape(width: int, item_bytes: int) -> tuple[int, int, int]:
    """As what the means of a block lie for heads of ``width``: the outputs of one strip of kernels/native/product.h, so
    numbers of four bytes of each mean side by side, the last filled up with zeros."""
    together = 4 // item_bytes
    return -(-width // together), SUMMARY_ROWS, together


# Most blocks that a token may select, so that the lists of a tile of tokens stay small: 64K tokens of them.
MOST_SELECTED = 1024

# Tokens that attend at once to what was fetched for them: see layers/fetching.py. The blocks that a token sees are
# split among at most so many programs on a device.
LISTED_TOKENS = 64
MAX_SPLITS = 32

# Outputs of a matrix that lie together for the native kernels: see kernels/native/product.h.
STRIP_ROWS = 16


# Inputs of an output that share a scale where weights are int8, and the bytes of a scale.
GROUP_SIZE = 32
SCALE_BYTES = 2


def grouped_size(size: int) -> int:
    """``size`` rounded up to whole pairs of groups: their scales fill a cache line of a strip."""
    return -(-size // (2 * GROUP_SIZE)) * 2 * GROUP_SIZE


def padded_shape(num_rows: int, num_columns: int, item_bytes: int) -> tuple[int, int]:
    """The shape in which a matrix is held: whole strips, and of two-byte numbers whole pairs of columns; of one-byte
    numbers whole pairs of groups, and the bytes of their scales."""
    columns = num_columns
    if item_bytes == 2:
        columns += num_columns % 2
    elif item_bytes == 1:
        columns = grouped_size(num_columns) // GROUP_SIZE * (GROUP_SIZE + SCALE_BYTES)
    return -(-num_rows // STRIP_ROWS) * STRIP_ROWS, columns


def arranged_floats(size: int) -> int:
    """Floats that a row of activations takes at most as the native products read it."""
    grouped = grouped_size(size)
    return max(size + size % 2, (grouped + 8 * grouped // GROUP_SIZE) // 4)


def num_padded_rows(num_rows: int) -> int:
    """Rows of the product that is taken for one of ``num_rows``."""
    return next((few for few in FEW_ROWS if num_rows <= few), -(-num_rows // ROUND_ROWS) * ROUND_ROWS)
