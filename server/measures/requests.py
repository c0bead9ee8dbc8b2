"""Requests: how many, how fast, what each of them held, and what was refused."""

from model.cache.place import Place
from server.error_table import refusal_codes
from server.measures.measure import (
    CONTEXT_TOKENS,
    INFORMATION_BITS,
    LATENCY_SECONDS,
    REQUEST_BYTES,
    STEP_SECONDS,
    Kind,
    Measure,
)

MISSES = (
    "empty", "different", "not_kept", "evicted", "no_information", "no_room", "not_wanted", "prompt_logprobs",
    "not_begun",
)  # fmt: skip
# What is there at nought before it happens.
PREFIXES = (*(("hit", place.value) for place in Place), *(("miss", reason) for reason in MISSES))
METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH", "other")

REQUESTS = Measure(
    "fano_requests", Kind.GAUGE, "",
    "Requests in the engine: running ones hold state on the device, saved ones made room and wait in host memory.",
    "waiting grows while running is at its limit: more comes than this machine can do.",
    {"status": ("running", "waiting", "saved")},
)  # fmt: skip
REQUESTS_LIMIT = Measure(
    "fano_requests_limit", Kind.GAUGE, "",
    "Most requests at once: FANO_MAX_SEQUENCES may run, FANO_MAX_QUEUE may wait (saved ones count as waiting).",
    "waiting at its limit: more are answered 429 with Retry-After. Send less, or add a server.",
    {"status": ("running", "waiting")},
)  # fmt: skip
FINISHED = Measure(
    "fano_requests_finished_total", Kind.COUNTER, "", "Requests that left the engine, by reason.",
    "error: see the log. abort: clients leave before the answer ends, perhaps for want of patience.",
    {"reason": ("stop", "length", "abort", "error")},
)  # fmt: skip
HTTP_REQUESTS = Measure(
    "fano_http_requests_total", Kind.COUNTER, "",
    "HTTP requests that were answered, by method, route and status; a status of 499 is a client that left.",
    "5xx: the share of them is the error ratio; the log has each with its request id. 429: see fano_requests.",
    {"method": METHODS, "route": "the templates of the routes in /docs, or none", "status": "HTTP's status codes"},
)  # fmt: skip
HTTP_OPEN = Measure(
    "fano_http_requests_open", Kind.GAUGE, "", "HTTP requests that are being answered, this scrape among them.",
    "A drain waits for them to end, at most FANO_DRAIN_SECONDS.",
)  # fmt: skip
TOKENS = Measure(
    "fano_tokens_total", Kind.COUNTER, "tokens",
    "Tokens of prompts, of these the ones that were cached and not read again, and tokens written.",
    "prompt grows much faster than cached in conversations: their beginnings change. See fano_prefix_total.",
    {"kind": ("prompt", "cached", "completion")},
)  # fmt: skip
PREFIX = Measure(
    "fano_prefix_total", Kind.COUNTER, "",
    "Requests by whether their prompt's beginning was there: at which place it was kept, or why nothing was found.",
    "miss by evicted: raise FANO_CHECKPOINT_SLOTS or FANO_SESSION_BYTES. miss by different: prompts begin differently; "
    "put what changes last.",
    {"result": ("hit", "miss"), "reason": (*Place, *MISSES)},
)  # fmt: skip
REFUSALS = Measure(
    "fano_refusals_total", Kind.COUNTER, "", "Requests that were answered with an error, by its code.",
    "queue_full: overload. storage_full: the disk. internal_error: a defect; see the log. Others: mistakes of clients.",
    {"code": refusal_codes()},
)  # fmt: skip
FIRST_TOKEN = Measure(
    "fano_time_to_first_token_seconds", Kind.HISTOGRAM, "seconds",
    "From a request's arrival to the first text of its answer; queue, search and reading of the prompt included.",
    "Slow: see fano_queue_seconds (too many at once), fano_retrieval_seconds, and the length of prompts.",
    buckets=LATENCY_SECONDS,
)  # fmt: skip
INTER_TOKEN = Measure(
    "fano_inter_token_seconds", Kind.HISTOGRAM, "seconds", "Between two tokens of one choice, as the engine made them.",
    "Slow: more streams at once, or long prompts read between (fano_step_seconds by mixed).",
    buckets=STEP_SECONDS,
)  # fmt: skip
QUEUE = Measure(
    "fano_queue_seconds", Kind.HISTOGRAM, "seconds", "From a request's submission to the engine's first work on it.",
    "Slow: raise FANO_MAX_SEQUENCES if memory allows, or add a server.",
    buckets=LATENCY_SECONDS,
)  # fmt: skip
REQUEST = Measure(
    "fano_request_seconds", Kind.HISTOGRAM, "seconds", "From a request's arrival to its answer's end.",
    "Slow, but the first token is not: long answers; max_tokens and FANO_MAX_REQUEST_SECONDS bound them.",
    buckets=LATENCY_SECONDS,
)  # fmt: skip
STEP = Measure(
    "fano_step_seconds", Kind.HISTOGRAM, "seconds", "One step of the engine, by what it did.",
    "decode slower than usual at the same number of streams: others use the cores; see FANO_THREADS.",
    {"phase": ("prefill", "decode", "mixed")},
    buckets=STEP_SECONDS,
)  # fmt: skip
REQUEST_KV = Measure(
    "fano_request_kv_bytes", Kind.HISTOGRAM, "bytes", "Keys and values that a finished request held at its end.",
    "Grows with the length of prompts: policy full. Under policy window it does not.",
    buckets=REQUEST_BYTES,
)  # fmt: skip
REQUEST_STATE = Measure(
    "fano_request_state_bytes", Kind.HISTOGRAM, "bytes", "SSM and convolution state that a finished request held.",
    "The same for every request of one choice, whatever its length; else a defect.",
    buckets=REQUEST_BYTES,
)  # fmt: skip
REQUEST_ARCHIVE = Measure(
    "fano_request_archive_bytes", Kind.HISTOGRAM, "bytes",
    "Host memory and disk behind a finished request: text and index of its documents, and archived keys and values.",
    "This is the part that grows with the length of what is asked.",
    buckets=REQUEST_BYTES,
)  # fmt: skip
CONTEXT = Measure(
    "fano_context_tokens", Kind.HISTOGRAM, "tokens", "Tokens of prompt and answer of a finished request.",
    buckets=CONTEXT_TOKENS,
)  # fmt: skip
INFORMATION = Measure(
    "fano_context_information_bits", Kind.HISTOGRAM, "bits",
    "Surprisal of what a finished request had read; only with FANO_INFORMATION, for it costs work.",
    "Above fano_state_capacity_bits: the state cannot hold all of it, whatever the model.",
    buckets=INFORMATION_BITS,
)  # fmt: skip
CAPACITY = Measure(
    "fano_state_capacity_bits", Kind.HISTOGRAM, "bits", "Bits of all memory that a finished request held at its end.",
    buckets=INFORMATION_BITS,
)  # fmt: skip
VLLM_RUNNING = Measure(
    "vllm:num_requests_running", Kind.GAUGE, "", "fano_requests by running, under the name that gateways read.",
)  # fmt: skip
VLLM_WAITING = Measure(
    "vllm:num_requests_waiting", Kind.GAUGE, "",
    "fano_requests by waiting and saved, under the name that gateways read.",
)  # fmt: skip
VLLM_KV_USAGE = Measure(
    "vllm:kv_cache_usage_perc", Kind.GAUGE, "", "Share of the key/value blocks in use or cached; 1 means all.",
)  # fmt: skip

MEASURES = (
    REQUESTS, REQUESTS_LIMIT, FINISHED, HTTP_REQUESTS, HTTP_OPEN, TOKENS, PREFIX, REFUSALS, FIRST_TOKEN, INTER_TOKEN,
    QUEUE, REQUEST, STEP, REQUEST_KV, REQUEST_STATE, REQUEST_ARCHIVE, CONTEXT, INFORMATION, CAPACITY,
    VLLM_RUNNING, VLLM_WAITING, VLLM_KV_USAGE,
)  # fmt: skip
