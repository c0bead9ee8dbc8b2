"""The memory bill before anything is loaded: pure arithmetic over the two configurations. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from model.config import FLOAT32_BYTES, EngineConfig, ModelConfig
from model.errors import ConfigInvalid
from model.policy import BLOCK_TOKENS, AttentionPolicy
from model.tiles import (
    ATTENTION_TILE_TOKENS,
    DECODE_GAP_FLOATS,
    LISTED_TOKENS,
    MAX_SPLITS,
    MOST_SELECTED,
    PROMPT_LOGPROB_ROWS,
    QUERY_TILE_TOKENS,
    SCAN_TILE_TOKENS,
    SHARED_TOKENS,
    STRIP_ROWS,
    arranged_floats,
    key_tile_blocks,
    num_padded_rows,
)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What an engine will hold, in bytes.

    Weights, states and keys/values equal what is allocated, to the byte. The workspace is an upper bound of the
    temporaries of one step: prompt chunks of ``prefill_chunk_tokens`` and one token of every slot, with the logits of
    every slot and of a chunk whose log probabilities are wanted. ``saved_bytes`` is not on the device: host memory for
    preempted requests, and ``session_bytes`` for checkpoints and sessions, taken when it is needed.
    ``bytes_per_sequence`` is what one sequence holds at the full context under the engine's policy. A token that left
    the window of policy ``archive`` takes ``archive_bytes_per_token`` and ``summary_bytes_per_token``, where there are
    indexes with the most that they take, of the host;
    there is room for ``num_archive_blocks`` blocks of such tokens in ``archive_bytes`` of memory and
    ``archive_disk_bytes`` of disk. On a device ``num_fetched_blocks`` of them are in ``fetched_bytes`` of its pool
    ``kv``, beside the ``kv_bytes`` of the windows.
    """

    num_slots: int
    num_checkpoint_slots: int
    num_blocks: int
    weight_bytes: int
    ssm_state_bytes: int
    conv_state_bytes: int
    kv_bytes: int
    workspace_bytes: int
    saved_bytes: int
    session_bytes: int
    bytes_per_sequence: int
    archive_bytes: int
    archive_disk_bytes: int
    num_fetched_blocks: int
    fetched_bytes: int
    num_archive_blocks: int
    bytes_per_archived_block: int
    archive_bytes_per_token: float
    summary_bytes_per_token: float

    @staticmethod
    def of(model: ModelConfig, engine: EngineConfig) -> "MemoryPlan":
        """The plan of ``model`` run as ``engine`` says."""
        per_sequence = num_resident_blocks(
            engine.policy_for(model), engine.max_context_tokens, engine.prefill_chunk_tokens
        )
        num_blocks = engine.num_slots * per_sequence if engine.num_blocks is None else engine.num_blocks
        block_bytes = BLOCK_TOKENS * model.kv_bytes_per_token(engine.dtype)
        num_states = engine.num_slots + engine.num_checkpoint_slots
        archived_bytes, summary_bytes = model.archive_bytes_per_block(engine.dtype, engine.archive_index)
        archive = engine.archive_bytes, engine.archive_disk_bytes, engine.archive_index
        return MemoryPlan(
            num_slots=engine.num_slots,
            num_checkpoint_slots=engine.num_checkpoint_slots,
            num_blocks=num_blocks,
            weight_bytes=model.weight_bytes(engine.dtype),
            ssm_state_bytes=num_states * model.ssm_state_bytes,
            conv_state_bytes=num_states * model.conv_state_bytes,
            kv_bytes=num_blocks * block_bytes,
            workspace_bytes=_workspace_bytes(model, engine),
            saved_bytes=engine.saved_bytes,
            session_bytes=engine.session_bytes,
            bytes_per_sequence=model.state_bytes + per_sequence * block_bytes,
            archive_bytes=engine.archive_bytes,
            archive_disk_bytes=engine.archive_disk_bytes,
            num_fetched_blocks=engine.num_fetched_blocks(model),
            fetched_bytes=engine.num_fetched_blocks(model) * block_bytes,
            bytes_per_archived_block=archived_bytes + summary_bytes,
            num_archive_blocks=sum(model.num_archive_blocks(engine.dtype, *archive)),
            archive_bytes_per_token=archived_bytes / BLOCK_TOKENS,
            summary_bytes_per_token=summary_bytes / BLOCK_TOKENS,
        )

    @property
    def num_states(self) -> int:
        """Slots of the state pool: those of sequences and those of checkpoints."""
        return self.num_slots + self.num_checkpoint_slots

    @property
    def pool_bytes(self) -> Mapping[str, int]:
        """Bytes by the pool names of ``fano_device_memory_plan_bytes``."""
        return {
            "weights": self.weight_bytes,
            "ssm_state": self.ssm_state_bytes,
            "conv_state": self.conv_state_bytes,
            "kv": self.kv_bytes + self.fetched_bytes,
            "workspace": self.workspace_bytes,
        }

    @property
    def total_bytes(self) -> int:
        """Bytes of all pools on the device."""
        return sum(self.pool_bytes.values())

    def require(self, available: int | None) -> None:
        """Raise ConfigInvalid where the device pools do not fit into ``available`` bytes; None is taken for enough."""
        if available is not None and self.total_bytes > available:
            pools = ", ".join(f"{pool} {size}" for pool, size in self.pool_bytes.items())
            raise ConfigInvalid(
                "the memory plan",
                f"{self.total_bytes} bytes ({pools})",
                f"at most the {available} bytes that are available",
                "lower FANO_MAX_SEQUENCES or FANO_MAX_CONTEXT_TOKENS, or choose FANO_POLICY=window",
            )

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of recurrent state that one sequence holds, whatever its length."""
        return (self.ssm_state_bytes + self.conv_state_bytes) // self.num_states

    @property
    def bytes_per_block(self) -> int:
        """Bytes of keys and values of one block in all attention layers."""
        return self.kv_bytes // self.num_blocks


def num_resident_blocks(policy: AttentionPolicy, num_tokens: int, chunk_tokens: int) -> int:
    """Most blocks a sequence of ``num_tokens`` holds at once while it is read in chunks of ``chunk_tokens``."""
    return -(-policy.max_resident_tokens(num_tokens, chunk_tokens) // BLOCK_TOKENS)


def num_archived_blocks(
    policy: AttentionPolicy, num_prompt_tokens: int, max_tokens: int, num_choices: int
) -> tuple[int, int]:
    """Blocks of the archive that a request holds when all its choices have drawn their last token, which is not read
    any more: those of full blocks of the prompt, which the choices share whichever of them they left the window of, and
    those of the choices themselves, all together."""
    num_left = policy.num_archived(num_prompt_tokens + max(1, max_tokens) - 1)
    num_shared = min(num_left, max(0, num_prompt_tokens - policy.sinks) // BLOCK_TOKENS)
    return num_shared, num_choices * (num_left - num_shared)


def _workspace_bytes(model: ModelConfig, engine: EngineConfig) -> int:
    """The residual stream, the widest of the layers' parts with all its temporaries, and the logits; or a step of the
    streams, if that takes more."""
    num_tokens = engine.prefill_chunk_tokens + engine.num_slots
    width = model.hidden_size
    num_logits = num_padded_rows(engine.num_slots + PROMPT_LOGPROB_ROWS)
    # In bfloat16 torch's product is made float32 afterwards.
    cast = engine.dtype.kept.num_bytes
    narrow = 0 if cast == FLOAT32_BYTES else cast
    logits = num_logits * (model.vocab_size * (narrow + FLOAT32_BYTES) + 3 * width * FLOAT32_BYTES)
    # Residual, normed input, its cast, and the part's output that is added to the residual.
    stream = num_tokens * width * 4 * FLOAT32_BYTES
    parts = [_feed_forward_bytes(model, num_tokens)]
    if model.num_mamba_layers:
        parts.append(_mamba_bytes(model, num_tokens, cast))
    if model.num_attention_layers:
        parts.append(_attention_bytes(model, engine, num_tokens) + _fetching_bytes(model, engine, num_tokens))
    if model.num_expert_layers:
        parts.append(_expert_bytes(model, num_tokens))
    return max(stream + max(*parts, logits), logits + _step_bytes(model, engine, num_tokens))


def _step_bytes(model: ModelConfig, engine: EngineConfig, num_tokens: int) -> int:
    """Workspace of the native step: rows of all tokens, and for each thread a row and a tile of attention; of
    few tokens, each thread has the narrow rows to itself."""
    inner, ffn, queries, width = model.inner_size, model.intermediate_size, model.query_size, model.hidden_size
    wide = max(queries + 2 * model.kv_size, 2 * inner, 2 * ffn) + 2 * inner + max(queries, inner) + width
    arranged = arranged_floats(width) + arranged_floats(ffn) + arranged_floats(max(queries, inner))
    narrow = arranged + model.dt_rank + 2 * model.state_size
    head = -(-model.head_width // STRIP_ROWS) * STRIP_ROWS
    tile = ATTENTION_TILE_TOKENS * model.num_heads // model.num_kv_heads
    attention = tile * (2 * head + BLOCK_TOKENS + 2) + 2 * head * BLOCK_TOKENS
    # A request may choose policy archive: what its tokens choose, marks of blocks, rows that go together.
    places = -(-engine.max_context_tokens // BLOCK_TOKENS)
    attention += ATTENTION_TILE_TOKENS * 2 * min(places, MOST_SELECTED) + places + tile * (2 * head + 2)
    if engine.archive_index is not None:
        # How like a query each list is, a score of each block, and strips that are looked through.
        attention += 2 * (engine.archive_index.num_blocks + engine.archive_index.num_lists + STRIP_ROWS)
    few = min(num_tokens, SHARED_TOKENS) * narrow
    own = max(width, ffn) + 2 * model.num_heads + attention + few + 32 * DECODE_GAP_FLOATS
    return FLOAT32_BYTES * (num_tokens * (wide + narrow) + engine.num_threads * own)


def _feed_forward_bytes(model: ModelConfig, num_tokens: int) -> int:
    # Gate and up, what torch's product in another dtype made them of, and the copy of the strided half.
    return num_tokens * 5 * model.intermediate_size * FLOAT32_BYTES


def _expert_bytes(model: ModelConfig, num_tokens: int) -> int:
    width, chosen = model.hidden_size, model.num_experts_per_token
    grouped = 2 * num_tokens * chosen * width * FLOAT32_BYTES
    # At worst one expert is chosen by every token.
    busiest = _feed_forward_bytes(model, num_tokens) + 2 * num_tokens * width * FLOAT32_BYTES
    routing = num_tokens * (2 * model.num_experts * FLOAT32_BYTES + chosen * 48)
    return grouped + busiest + num_tokens * width * FLOAT32_BYTES + routing


def _mamba_bytes(model: ModelConfig, num_tokens: int, cast: int) -> int:
    inner, ranks = model.inner_size, model.dt_rank + 2 * model.state_size
    projected = 2 * inner * 2 * FLOAT32_BYTES
    # u, its cast, the time step before and after softplus, the driven input, y, silu(z): see selective_scan.
    scanned = inner * (6 * FLOAT32_BYTES + cast)
    steering = ranks * (2 * FLOAT32_BYTES + cast)
    # Decay and inflow of a tile, while those of the tile before are still held.
    tile = min(num_tokens, SCAN_TILE_TOKENS)
    return num_tokens * (projected + scanned + steering) + 4 * tile * model.state_size * inner * FLOAT32_BYTES


def _attention_bytes(model: ModelConfig, engine: EngineConfig, num_tokens: int) -> int:
    cast = engine.dtype.kept.num_bytes
    # As they are and in the pool's dtype; queries and what is mixed also as float32.
    projected = num_tokens * (4 * model.query_size + 2 * model.kv_size) * (cast + FLOAT32_BYTES)
    worst = 0
    for tile in (1, min(num_tokens, QUERY_TILE_TOKENS)):
        rows = tile * model.num_heads
        # Counted for full attention: a request may choose it, whatever the engine's own policy is.
        blocks = min(key_tile_blocks(rows, BLOCK_TOKENS), -(-engine.max_context_tokens // BLOCK_TOKENS))
        keys = blocks * BLOCK_TOKENS
        # Scores of this tile and of the one before, a cast of them, and the mask.
        scores = rows * keys * (2 * FLOAT32_BYTES + (0 if cast == FLOAT32_BYTES else cast)) + tile * keys * 4
        gathered = 2 * 2 * keys * model.kv_size * cast
        carried = rows * ((model.head_width + 2) * 3 * FLOAT32_BYTES + 2 * model.head_width * cast)
        worst = max(worst, scores + gathered + carried)
    return projected + worst


def _fetching_bytes(model: ModelConfig, engine: EngineConfig, num_tokens: int) -> int:
    """On a device, what tokens take that select: queries on their way to the host and beside what others get, the
    splits of those that attend at once, their lists; and of all layers the blocks that are leaving, twice."""
    if not engine.num_fetched_blocks(model):
        return 0
    cast, count = engine.dtype.kept.num_bytes, min(num_tokens, LISTED_TOKENS)
    queries = num_tokens * (4 * model.query_size * cast + 8)
    splits = count * MAX_SPLITS * model.num_heads * (model.head_width + 2) * FLOAT32_BYTES
    lists = count * model.num_kv_heads * (-(-engine.max_context_tokens // BLOCK_TOKENS) + 16) * 4
    num_leaving = engine.prefill_chunk_tokens // BLOCK_TOKENS + 2 * engine.num_slots
    leaving = 2 * num_leaving * BLOCK_TOKENS * model.kv_bytes_per_token(engine.dtype)
    return queries + splits + lists + leaving
