"""The rows of the dashboard: what each panel shows, what to do when it is bad, and its queries.

Plain data, so that whoever adds a panel writes no Grafana. Names of metrics are those of ``docs/metrics.md``.
"""

from deploy.grafana.panels import Panel, Query, Row, mean, of, pace, quantile, quantiles, share

HTTP = "fano_http_requests_total"
# Not those of whoever looks every few seconds.
NOT_WATCHERS = "!~/metrics|/healthz|/readyz|/v1/memory"
ERRORS = pace(HTTP, route=NOT_WATCHERS, status="=~5..")
RESIDENT = of("process_resident_memory_bytes")

NOW = Row("Now", (
    Panel(
        "Stage", "stat", "short",
        "Whether the server loads, takes questions, drains, or has failed.",
        "Failed: the engine has stopped; the log's last error says why, and only a new process helps. Draining "
        "for longer than FANO_DRAIN_SECONDS: see the alert FanoDrainStuck.",
        (Query(f"max by (stage) ({of('fano_stage')}) == 1", "{{stage}}"),), width=4,
    ),
    Panel(
        "Memory of what there is", "stat", "percentunit",
        "Resident set of the process, of that and what the container or the machine would still give.",
        "From 90 % on the kernel may end the process. See which pool of host memory grows; lower "
        "FANO_SESSION_BYTES, FANO_SAVED_BYTES or FANO_MAX_SEQUENCES, or give it more.",
        (Query(f"{RESIDENT} / ({RESIDENT} + {of('fano_host_memory_available_bytes')})", "resident"),),
        width=4, warn=0.8, alarm=0.9,
    ),
    Panel(
        "Requests", "stat", "short",
        "Requests that hold state, and those that wait for it.",
        "Waiting for long: the queue panel says since when. More sequences at once (FANO_MAX_SEQUENCES) cost the "
        "plan's bytes each; shorter answers cost nothing.",
        (Query(f"sum({of('fano_requests', status='running')})", "running"),
         Query(f"sum({of('fano_requests', status='waiting')})", "waiting")), width=4,
    ),
    Panel(
        "First text, 95 %", "stat", "s",
        "Time within which 95 of 100 requests of the last minutes had their first text.",
        "See time in the queue first: if that is it, there are too many requests. Else long prompts that were "
        "not read before (tokens by kind, prefix misses).",
        (Query(quantile(0.95, "fano_time_to_first_token_seconds"), "95%"),), width=4, warn=5, alarm=30,
    ),
    Panel(
        "Replies with a server error", "stat", "percentunit",
        "Part of the replies whose status is 500 or above.",
        "The panel of refusals names the codes, the log the requests. 503 are right while the server loads or "
        "drains.",
        (Query(f"({ERRORS} or vector(0)) / {pace(HTTP, route=NOT_WATCHERS)}", "errors"),),
        width=4, warn=0.01, alarm=0.05,
    ),
    Panel(
        "Alerts that fire", "stat", "short",
        "Number of alerts of these servers that fire now.",
        "Open /alerts of Prometheus: each alert says what to do.",
        (Query('count(ALERTS{alertstate="firing", instance=~"$instance"}) or vector(0)', "alerts"),), width=4, alarm=1,
    ),
))  # fmt: skip

MEMORY = Row("Memory by pool and tier, against the plan", (
    Panel(
        "Device memory by pool", "stack", "bytes",
        "Bytes of the tensors held, by pool; dashed, the plan of all pools, drawn up before anything was loaded. "
        "States and keys/values are allocated once, so the line is flat whatever is read.",
        "Above the plan: the arithmetic is wrong, which is a fault of Fano; keep /v1/memory and the settings for "
        "a report.",
        (Query(f"sum by (pool) ({of('fano_device_memory_bytes')})", "{{pool}}"),
         Query(f"sum({of('fano_device_memory_plan_bytes')})", "plan", is_limit=True)), width=12,
    ),
    Panel(
        "Host memory by pool", "stack", "bytes",
        "Host memory beside the device's pools: archive, summaries, index, embeddings, what of sessions lies in "
        "memory, and what of the process is in no pool; dashed, what sessions may take.",
        "Sessions at their limit: the oldest states leave, and what they read is read again (prefix misses). "
        "Index and embeddings grow with documents: delete some. Unaccounted grows without end: a fault of Fano.",
        (Query(f"sum by (pool) ({of('fano_host_memory_bytes')})", "{{pool}}"),
         Query(f"sum({of('fano_host_memory_budget_bytes', pool='sessions')})", "most of sessions", is_limit=True)),
        width=12,
    ),
    Panel(
        "Key/value blocks", "stack", "short",
        "Blocks of keys and values: used by requests, kept for what was read before, free.",
        "Used near all: the next requests wait or make others wait. Choose FANO_POLICY=window, lower "
        "FANO_MAX_CONTEXT_TOKENS, or plan for fewer sequences.",
        (Query(f"sum by (status) ({of('fano_kv_blocks')})", "{{status}}"),
         Query(f"sum({of('fano_kv_blocks_shared')})", "shared", is_limit=True)),
    ),
    Panel(
        "State slots", "stack", "short",
        "Slots of SSM and convolution state: used by requests, kept as checkpoints, free.",
        "No slot free and many prefix misses of reason evicted: raise FANO_CHECKPOINT_SLOTS.",
        (Query(f"sum by (status) ({of('fano_state_slots')})", "{{status}}"),),
    ),
    Panel(
        "Disk by pool", "lines", "bytes",
        "Bytes on disk of texts, index, files and saved sessions; dashed, what the file system has left.",
        "Little left: delete documents and files, or saved sessions, or enlarge the volume; a full disk refuses "
        "uploads and saves with 507 and loses nothing.",
        (Query(f"sum by (pool) ({of('fano_disk_bytes')})", "{{pool}}"),
         Query(f"min({of('fano_disk_free_bytes')})", "free", is_limit=True)), is_logarithmic=True,
    ),
))  # fmt: skip

REQUESTS = Row("What a request holds", (
    Panel(
        "Bytes of a request", "lines", "bytes",
        "Mean bytes that the requests which ended held: keys and values, state, and the text and index of the "
        "documents asked. The first two do not grow with the length under policy window.",
        "Keys and values grow with the length: requests run under policy full.",
        (Query(mean("fano_request_kv_bytes"), "keys and values"),
         Query(mean("fano_request_state_bytes"), "state"),
         Query(mean("fano_request_archive_bytes"), "archive")), is_logarithmic=True,
    ),
    Panel(
        "Tokens of a request", "lines", "short",
        "Tokens of prompt and answer: half and 95 of 100 of the requests were shorter.",
        "Longer than expected: a client sends whole documents as text instead of posting them once and naming "
        "them.",
        (Query(quantile(0.5, "fano_context_tokens"), "50%"),
         Query(quantile(0.95, "fano_context_tokens"), "95%")), is_logarithmic=True,
    ),
    Panel(
        "Information read, and what memory can hold", "lines", "decbits",
        "Mean information of the prompts (the model's surprisal, measured with FANO_INFORMATION=true), the "
        "capacity of all memory that a request held, and how much a model's state was measured to recall.",
        "Read above capacity: what is asked word for word has to come from retrieval. A recall of 0 says that the"
        " state alone recalls nothing exactly: rely on documents, not on the conversation's memory.",
        (Query(mean("fano_context_information_bits"), "information read"),
         Query(mean("fano_state_capacity_bits"), "capacity of state and window"),
         Query(f"max({of('fano_state_recall_bits')})", "recall measured")), is_logarithmic=True,
    ),
))  # fmt: skip

SESSIONS = Row("Sessions, and what was read before", (
    Panel(
        "Sessions by tier", "stack", "short",
        "Named sessions by where their state is: on the device, in host memory, saved on disk, or only as tokens.",
        "Many as tokens: their next turn reads the whole conversation again; raise FANO_SESSION_BYTES, or save "
        "them.",
        (Query(f"sum by (status) ({of('fano_sessions')})", "{{status}}"),), width=6,
    ),
    Panel(
        "Prompts whose beginning was there", "lines", "percentunit",
        "Part of the requests that found the state of their prompt's beginning, and part of the prompt tokens "
        "that were not read again.",
        "Falls: see the reasons beside. A conversation must be sent as it was answered, to the letter.",
        (Query(share("fano_prefix_total", result="hit"), "requests"),
         Query(f"{pace('fano_tokens_total', kind='cached')} / {pace('fano_tokens_total', kind='prompt')}", "tokens")),
        width=6,
    ),
    Panel(
        "Misses by reason", "stack", "ops",
        "Requests a second that had to read their prompt from its beginning, by reason.",
        "evicted: more room (FANO_CHECKPOINT_SLOTS, FANO_SESSION_BYTES). Other reasons are the clients': a "
        "changed beginning, another policy.",
        (Query(pace("fano_prefix_total", "reason", result="miss"), "{{reason}}"),), width=6,
    ),
    Panel(
        "Checkpoints by tier", "stack", "short",
        "States of what was read before, on the device and on the host; dashed, unsaved states of sessions given "
        "up.",
        "Given up rises: sessions go on slower from their tokens. More FANO_SESSION_BYTES, or save what matters.",
        (Query(f"sum by (tier) ({of('fano_checkpoints')})", "{{tier}}"),
         Query(f"sum({of('fano_checkpoints_lost_total')})", "given up", is_limit=True)), width=6,
    ),
))  # fmt: skip

LATENCY = Row("Time", (
    Panel(
        "Time to first text", "lines", "s",
        "From a request's arrival to its first text: half, 95 and 99 of 100.",
        "Compare with time in the queue; what is left is the reading of prompts that were not read before.",
        quantiles("fano_time_to_first_token_seconds"), warn=5, alarm=30, is_logarithmic=True,
    ),
    Panel(
        "Time between tokens", "lines", "s",
        "Between two tokens of one answer, in the engine: half, 95 and 99 of 100.",
        "Rises with requests at once and with prompts read beside (steps by phase: mixed). Fewer "
        "FANO_MAX_SEQUENCES, or more threads.",
        quantiles("fano_inter_token_seconds"), is_logarithmic=True,
    ),
    Panel(
        "Time in the queue", "lines", "s",
        "From submission to the engine's first work on a request: half, 95 and 99 of 100.",
        "Rises: more is asked than is answered. See the alert FanoQueueGrowing.",
        quantiles("fano_queue_seconds"), is_logarithmic=True,
    ),
    Panel(
        "Requests in the engine", "stack", "short",
        "Requests that run, that wait, and that made room for others; dashed, how many may wait.",
        "At the dashed line requests are refused with 429. Clients should back off as Retry-After says.",
        (Query(f"sum by (status) ({of('fano_requests')})", "{{status}}"),
         Query(f"sum({of('fano_requests_limit', status='waiting')})", "most that wait", is_limit=True)),
    ),
    Panel(
        "Tokens a second", "lines", "ops",
        "Prompt tokens read, prompt tokens that were there already, and tokens answered.",
        "Answered falls while requests run: the engine is slower than before; see steps by phase and the "
        "machine's load.",
        (Query(pace("fano_tokens_total", "kind"), "{{kind}}"),),
    ),
    Panel(
        "Steps of the engine by phase", "stack", "percentunit",
        "Part of the time that the engine spends on reading (prefill), answering (decode) and both in one step "
        "(mixed).",
        "Near 1 in all: the engine is never idle, so what comes more waits. Mostly prefill: prompts are not "
        "reused.",
        (Query(pace("fano_step_seconds_sum", "phase"), "{{phase}}"),),
    ),
    Panel(
        "A step, 95 %", "lines", "s",
        "Within which 95 of 100 steps of a phase were done.",
        "Mixed steps are as long as their chunk of a prompt; decode alone must not rise with the length that was "
        "read.",
        (Query(quantile(0.95, "fano_step_seconds", "phase"), "{{phase}}"),), is_logarithmic=True,
    ),
    Panel(
        "Preemptions", "lines", "ops",
        "Requests a second that had to make room: their state waits in host memory.",
        "Regularly above 0: more is admitted than the pools hold. Lower FANO_MAX_SEQUENCES or "
        "FANO_MAX_CONTEXT_TOKENS.",
        (Query(pace("fano_preemptions_total"), "preemptions"),),
    ),
    Panel(
        "Whole answers", "lines", "s",
        "From a request's arrival to its answer's end: half, 95 and 99 of 100.",
        "Long with a short time to first text: clients ask for long answers (max_tokens).",
        quantiles("fano_request_seconds"), is_logarithmic=True,
    ),
))  # fmt: skip

RETRIEVAL = Row("Retrieval and documents", (
    Panel(
        "Questions by decision", "stack", "ops",
        "Questions a second by what retrieval decided (retrieved, nothing found, skipped) and why.",
        "Many with nothing: people ask what is not in their documents, or the documents are not ready. Many "
        "skipped where documents are named: set FANO_RETRIEVAL_GATE=always.",
        (Query(pace("fano_retrieval_total", "decision, reason"), "{{decision}}: {{reason}}"),),
    ),
    Panel(
        "Search by stage, 95 %", "lines", "s",
        "Within which 95 of 100 searches had done each stage.",
        "One stage rises with the documents: limit questions to documents or parts of them (within).",
        (Query(quantile(0.95, "fano_retrieval_seconds", "stage"), "{{stage}}"),), is_logarithmic=True,
    ),
    Panel(
        "Passages of a question", "lines", "short",
        "Mean number of passages that a question was answered from.",
        "0 for long: nothing is found; see the decisions.",
        (Query(mean("fano_retrieval_passages"), "passages"),),
    ),
    Panel(
        "Documents by status", "stack", "short",
        "Documents queued, being parsed, indexed and read, ready, and failed.",
        "Failed: GET /v1/documents names each one's reason. Queued for long: see the alert FanoIndexBehind.",
        (Query(f"sum by (status) ({of('fano_documents')})", "{{status}}"),),
    ),
    Panel(
        "Vectors and facts", "lines", "short",
        "Vectors in the index and facts in the key table.",
        "Flat while documents are being indexed: indexing has stopped; the log says why.",
        (Query(f"sum({of('fano_index_vectors')})", "vectors"), Query(f"sum({of('fano_facts')})", "facts")),
        is_logarithmic=True,
    ),
    Panel(
        "Refusals by code", "stack", "ops",
        "Requests a second that were refused, by the code of the error.",
        "queue_full: too many at once. invalid_api_key: a client's key was revoked. Codes of storage: the disk. "
        "internal_error: a fault of Fano; the log has the trace.",
        (Query(f"{pace('fano_refusals_total', 'code')} > 0", "{{code}}"),),
    ),
    Panel(
        "Replies by status", "stack", "ops",
        "Replies a second by HTTP status; 499 is a client that left.",
        "5xx: see the alert FanoErrors. 4xx from one moment on: a client was changed.",
        (Query(f"{pace(HTTP, 'status', route=NOT_WATCHERS)} > 0", "{{status}}"),),
    ),
    Panel(
        "How answers end", "stack", "ops",
        "Requests a second that left the engine: stopped by themselves, at their length, given up by the client, "
        "failed.",
        "Many aborts: clients lose patience. Errors: a fault in generation; the log has the trace.",
        (Query(pace("fano_requests_finished_total", "reason"), "{{reason}}"),),
    ),
))  # fmt: skip

ROWS = (NOW, MEMORY, REQUESTS, SESSIONS, LATENCY, RETRIEVAL)
