"""Where in a prompt a state is kept, and so where its reading pauses. No torch.

A recurrent state can only be taken up where it was kept, and each place costs memory and, within a chunk, one more
step. Places are: the ends of messages; where another text parted from one that was read before; for named sessions
some places before the end, ever further apart, so that another end of the same prompt re-reads little more than what
differs; and, between chunks where it costs no step, every so often.
"""

from model.cache.place import Place
from model.engine.request import Keep
from model.policy import BLOCK_TOKENS

# To read fewer tokens than this again takes as long as to read one.
LEAST_TOKENS = 32
LEAST_BETWEEN_BORDERS = 128
# The first place before the end, and how much further from it each next one is.
TAIL_TOKENS, TAIL_FACTOR = 32, 4
# A prompt is kept at most so often between chunks.
MOST_INTERVALS = 16


def cuts(num_tokens: int, num_read: int, keep: Keep, num_common: int) -> tuple[tuple[int, Place], ...]:
    """Places strictly between ``num_read`` and the end of a prompt of ``num_tokens``, ascending.

    ``num_common`` of its tokens were seen before; if the text parts from the other one there, it will again.
    """
    if keep.nothing:
        return ()
    chosen: dict[int, Place] = {}
    last = num_read
    for border in keep.borders:
        if border - last >= LEAST_BETWEEN_BORDERS:
            chosen[border] = Place.MESSAGE
            last = border
    if keep.tail:
        distance = TAIL_TOKENS
        while distance < num_tokens - num_read:
            chosen.setdefault(num_tokens - distance, Place.TAIL)
            distance *= TAIL_FACTOR
    if num_common - num_read >= LEAST_TOKENS:
        chosen[num_common] = Place.DIVERGENCE
    return tuple(sorted((at, place) for at, place in chosen.items() if num_read < at < num_tokens))


def interval(num_tokens: int, chunk_tokens: int) -> int:
    """Tokens between two places that are kept in passing, in a prompt of ``num_tokens``."""
    return max(chunk_tokens, -(-num_tokens // MOST_INTERVALS) // BLOCK_TOKENS * BLOCK_TOKENS)
