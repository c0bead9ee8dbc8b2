"""The process: what runs, and whether it takes requests."""

from server.measures.measure import Kind, Measure
from server.readiness import Stage

STAGE = Measure(
    "fano_stage", Kind.GAUGE, "", "1 for the stage that the process is in, 0 for the others.",
    "failed: /readyz tells why; restart it. draining for longer than fano_drain_limit_seconds: a stuck drain; a second "
    "signal ends the process at once.",
    {"stage": (*Stage,)},
)  # fmt: skip
STAGE_SECONDS = Measure(
    "fano_stage_seconds", Kind.GAUGE, "seconds", "How long the process has been in that stage.",
    "loading for minutes: see the log.",
)  # fmt: skip
DRAIN_LIMIT = Measure(
    "fano_drain_limit_seconds", Kind.GAUGE, "seconds", "How long running answers may take to end after SIGTERM.",
    "Answers are cut off at the end of a drain: raise FANO_DRAIN_SECONDS.",
)  # fmt: skip
BUILD = Measure(
    "fano_build_info", Kind.GAUGE, "", "Always 1; the labels tell what runs.",
    "kernels is reference: the native kernels were not built, and everything is many times slower.",
    {
        "version": "Fano's version", "model": "the model's name", "device": "cpu, cuda:0 ...",
        "kernels": "reference, native-... or triton", "dtype": ("float32", "bfloat16", "int8"),
        "policy": "the default policy",
    },
)  # fmt: skip

# Made by prometheus_client from /proc, under the names that every dashboard knows.
PROCESS = (
    Measure("process_resident_memory_bytes", Kind.GAUGE, "bytes",
            "Resident memory: all host pools and unaccounted, and on a CPU the device's pools.",
            "Grows while fano_host_memory_bytes by pool does not: see unaccounted."),
    Measure("process_virtual_memory_bytes", Kind.GAUGE, "bytes", "Address space."),
    Measure("process_cpu_seconds_total", Kind.COUNTER, "seconds", "CPU time of the process.",
            "At the number of cores: the machine does all it can."),
    Measure("process_start_time_seconds", Kind.GAUGE, "seconds", "When the process was started, in Unix time.",
            "Changes: it was restarted."),
    Measure("process_open_fds", Kind.GAUGE, "", "Open files and connections."),
    Measure("process_max_fds", Kind.GAUGE, "", "Most that may be open.",
            "process_open_fds near it: raise `ulimit -n`."),
)  # fmt: skip

MEASURES = (STAGE, STAGE_SECONDS, DRAIN_LIMIT, BUILD, *PROCESS)
