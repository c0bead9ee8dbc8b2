"""Memory, disk and sessions: the bill, by pool and tier."""

from model.engine.stats import ARCHIVE_POOLS, POOL_NAMES
from server.bills.bill import TIERS
from server.measures.measure import Kind, Measure

HOST_POOLS = (*ARCHIVE_POOLS, "index", "embeddings", "sessions", "prompts", "unaccounted")
DISK_POOLS = ("store", "index", "kv_archive", "sessions", "files", "responses")
UNITS = ("free", "used", "cached")

DEVICE_MEMORY = Measure(
    "fano_device_memory_bytes", Kind.GAUGE, "bytes",
    "Bytes of the tensors held on the device, by pool; they are allocated at the start and do not grow.",
    "Above its plan: a defect, please report it. On a CPU these bytes are host memory.",
    {"pool": POOL_NAMES},
)  # fmt: skip
DEVICE_PLAN = Measure(
    "fano_device_memory_plan_bytes", Kind.GAUGE, "bytes",
    "Bytes planned from the configuration alone, before anything was loaded, by pool.",
    "Too much for the machine: lower FANO_MAX_SEQUENCES, FANO_CHECKPOINT_SLOTS or FANO_WINDOW; see `fano plan`.",
    {"pool": POOL_NAMES},
)  # fmt: skip
HOST_MEMORY = Measure(
    "fano_host_memory_bytes", Kind.GAUGE, "bytes",
    "Host memory by pool, beside the device's; unaccounted is the resident set less all pools that lie in it.",
    "unaccounted grows for hours: a leak, please report it. sessions at its budget: states are evicted, and what they "
    "were of is read again. index and embeddings are let go of when others need the room, prompts (text and index of "
    "prompts longer than the window) too.",
    {"pool": HOST_POOLS},
)  # fmt: skip
HOST_BUDGET = Measure(
    "fano_host_memory_budget_bytes", Kind.GAUGE, "bytes",
    "Most host memory of a pool that has a budget: FANO_SESSION_BYTES and FANO_SAVED_BYTES together for sessions, "
    "FANO_PROMPT_ARCHIVE_BYTES for prompts, FANO_ARCHIVE_BYTES for kv_archive with kv_summaries.",
    "Below what the sessions in use need: raise FANO_SESSION_BYTES. Long prompts refused with prompt_memory_full: "
    "raise FANO_PROMPT_ARCHIVE_BYTES.",
    {"pool": ("kv_archive", "sessions", "prompts")},
)  # fmt: skip
HOST_AVAILABLE = Measure(
    "fano_host_memory_available_bytes", Kind.GAUGE, "bytes",
    "Host memory that can still be taken without swapping, by the machine and by the container's limit.",
    "Near nought: the kernel will end a process. Lower FANO_SESSION_BYTES, FANO_SAVED_BYTES or FANO_MAX_SEQUENCES, or "
    "give the machine or container more.",
)  # fmt: skip
DISK = Measure(
    "fano_disk_bytes", Kind.GAUGE, "bytes",
    "Bytes in the data directory by pool: documents, their indexes, keys and values that no host memory was left for, "
    "sessions, files without a document, responses.",
    "Grows without new documents: see which pool. Delete documents, files and sessions that nobody needs.",
    {"pool": DISK_POOLS},
)  # fmt: skip
DISK_BUDGET = Measure(
    "fano_disk_budget_bytes", Kind.GAUGE, "bytes",
    "Most bytes of a pool that has a budget: FANO_SESSION_DISK_BYTES for sessions, FANO_ARCHIVE_DISK_BYTES for "
    "kv_archive.",
    "sessions near it: saving is soon refused with session_storage_full. Delete sessions or raise it.",
    {"pool": ("kv_archive", "sessions")},
)  # fmt: skip
DISK_FREE = Measure(
    "fano_disk_free_bytes", Kind.GAUGE, "bytes",
    "Bytes that this user can still write on the file system of the data directory.",
    "Near nought: uploads and saves are refused with 507. Make room, or move the data directory.",
)  # fmt: skip
DISK_SIZE = Measure(
    "fano_disk_size_bytes", Kind.GAUGE, "bytes", "Size of the file system of the data directory.",
)  # fmt: skip
STATE_SLOTS = Measure(
    "fano_state_slots", Kind.GAUGE, "", "Slots for SSM and convolution state on the device; cached are checkpoints.",
    "free and cached at nought while requests wait: raise FANO_MAX_SEQUENCES.",
    {"status": UNITS},
)  # fmt: skip
KV_BLOCKS = Measure(
    "fano_kv_blocks", Kind.GAUGE, "", "Blocks for keys and values on the device; cached are those of checkpoints.",
    "free and cached at nought: requests make room for each other (fano_preemptions_total). Lower FANO_WINDOW or "
    "FANO_MAX_SEQUENCES.",
    {"status": UNITS},
)  # fmt: skip
KV_SHARED = Measure(
    "fano_kv_blocks_shared", Kind.GAUGE, "",
    "Key/value blocks that several sequences hold, counted once in fano_kv_blocks.",
)  # fmt: skip
ARCHIVE_BLOCKS = Measure(
    "fano_kv_archive_blocks", Kind.GAUGE, "",
    "Blocks of keys and values that left the windows under policy archive, in host memory or its file; used are "
    "those of requests, cached those of checkpoints.",
    "free and cached at nought: requests wait for each other. Raise FANO_ARCHIVE_BYTES or FANO_ARCHIVE_DISK_BYTES.",
    {"status": UNITS},
)  # fmt: skip
PREEMPTIONS = Measure(
    "fano_preemptions_total", Kind.COUNTER, "", "Times that a request made room for another and went to host memory.",
    "Steadily rising: too many long requests at once. Lower FANO_MAX_SEQUENCES or the window.",
)  # fmt: skip
SESSIONS = Measure(
    "fano_sessions", Kind.GAUGE, "",
    "Named conversations by the nearest tier of their state, as last seen: on the device, in host memory, on the disk, "
    "or only as tokens, which are read again.",
    "Many in tokens: their state was evicted before it was saved. Raise FANO_SESSION_BYTES, or save them.",
    {"status": TIERS},
)  # fmt: skip
CHECKPOINTS = Measure(
    "fano_checkpoints", Kind.GAUGE, "", "States of what was read before, by tier: so that it is read once.",
    "Few, and fano_prefix_total says evicted: raise FANO_CHECKPOINT_SLOTS or FANO_SESSION_BYTES.",
    {"tier": ("resident", "host")},
)  # fmt: skip
CHECKPOINTS_LOST = Measure(
    "fano_checkpoints_lost_total", Kind.COUNTER, "", "Unsaved checkpoints of sessions that had to be given up.",
    "Rising: FANO_SESSION_BYTES is too small for the sessions in use.",
)  # fmt: skip
STATE_RECALL = Measure(
    "fano_state_recall_bits", Kind.GAUGE, "bits",
    "Bits that the model's state alone recalled when that was measured; not there for a model that nobody measured.",
    "Far below fano_state_capacity_bits by nature: what exceeds it must be looked up, so send documents as documents.",
)  # fmt: skip

MEASURES = (
    DEVICE_MEMORY, DEVICE_PLAN, HOST_MEMORY, HOST_BUDGET, HOST_AVAILABLE, DISK, DISK_BUDGET, DISK_FREE, DISK_SIZE,
    STATE_SLOTS, KV_BLOCKS, KV_SHARED, ARCHIVE_BLOCKS, PREEMPTIONS, SESSIONS, CHECKPOINTS, CHECKPOINTS_LOST,
    STATE_RECALL,
)  # fmt: skip
