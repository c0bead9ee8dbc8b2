"""A checkpoint into a running engine, and a report of what was chosen and why."""

import os
import time
from array import array
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from model.cache.available import available_bytes
from model.cache.block_pool import BlockPool
from model.cache.fetched_blocks import FetchedBlocks
from model.cache.kv_archive import KvArchive
from model.cache.plan import MemoryPlan
from model.cache.state_pool import StatePool
from model.config import Dtype, EngineConfig, ModelConfig
from model.engine.admission import Admission
from model.engine.engine import Engine
from model.engine.request import GenerationRequest, SamplingParams
from model.engine.runner import ModelRunner
from model.engine.scheduler import Budget, Scheduler
from model.engine.stats import BuildInfo, EngineStats
from model.engine.token_trie import TokenTrie
from model.errors import ConfigInvalid, ModelError
from model.fingerprint import weights_digest
from model.hybrid import HybridLM
from model.kernels import Kernels, choose, forced
from model.policy import AttentionPolicy
from model.tiles import MOST_SELECTED
from model.tokenizer import Tokenizer
from model.weights import load_weights, resolve_checkpoint

# Enough that its state is kept, too.
REHEARSED_TOKENS = 40
CPU_FLAGS_FILE = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Choice:
    """What was taken and why."""

    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.value} ({self.reason})"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What stands after loading. ``str`` of it is one line for the log."""

    directory: Path
    num_parameters: int
    plan: MemoryPlan
    device: Choice
    dtype: Choice
    threads: Choice
    kernels: Choice
    policy: Choice
    seconds: float

    def __str__(self) -> str:
        choices = ", ".join(
            f"{key} {getattr(self, key)}" for key in ("device", "dtype", "threads", "kernels", "policy")
        )
        return (
            f"{self.directory}: {self.num_parameters} parameters, {self.plan.total_bytes} bytes planned "
            f"({self.plan.num_slots} slots, {self.plan.num_blocks} blocks), {choices}, in {self.seconds:.1f} s"
        )


def load_engine(path_or_hub_id: str | Path, config: EngineConfig) -> tuple[Engine, LoadReport]:
    """Load a checkpoint and take all the memory the engine will ever hold.

    Keeps torch on one thread but while it reads prompts. Raises ``CheckpointNotFound``,
    ``ConfigInvalid`` or ``WeightsMismatch``.
    """
    started = time.perf_counter()
    directory = resolve_checkpoint(path_or_hub_id)
    model_config = ModelConfig.from_pretrained(directory)
    policy = config.policy_for(model_config)
    _require_device(config.device)
    _require_select(policy)
    _require_index(config)
    torch.set_num_threads(1)
    kernels, kernels_reason = _kernels(config, model_config)
    _require_products(config, kernels, kernels_reason)
    tokenizer = Tokenizer(directory)
    if tokenizer.vocab_size > model_config.vocab_size:
        expected = f"at least the {tokenizer.vocab_size} ids of its tokenizer.json"
        raise ConfigInvalid(
            "vocab_size", model_config.vocab_size, expected, "config and tokenizer do not belong together"
        )
    plan = MemoryPlan.of(model_config, config)
    if config.device == "cpu":
        plan.require(available_bytes())
    model = HybridLM(model_config, kernels, config.dtype, config.device)
    load_weights(model, directory)
    if kernels.product is not None:
        model.pack()
    budgets = config.archive_bytes, config.archive_disk_bytes
    archive = KvArchive(model_config, config.dtype, *budgets, config.archive_directory, config.archive_index)
    fetched = None
    if plan.num_fetched_blocks:
        fetched = FetchedBlocks(model_config, config.dtype, plan.num_fetched_blocks, archive, config.device)
    runner = ModelRunner(
        model,
        StatePool(model_config, plan.num_states, config.device),
        BlockPool(model_config, plan.num_blocks, config.dtype, config.device, archive, fetched),
        config.device,
        num_slots=plan.num_slots,
        checkpoint_bytes=config.session_bytes,
        chunk_tokens=config.prefill_chunk_tokens,
    )
    runner.warm_up()
    stats = EngineStats(
        build=BuildInfo(
            directory.name,
            config.device,
            kernels.name,
            config.dtype.value,
            str(policy),
            config.archive_index_blocks,
        ),
        slots=runner.slots,
        blocks=runner.blocks,
        pool_bytes=runner.pool_bytes,
        plan_bytes=plan.pool_bytes,
        max_context_tokens=config.max_context_tokens,
        checkpoint_budget_bytes=config.session_bytes,
    )
    budget = Budget(config.prefill_chunk_tokens, config.mixed_chunk_tokens, config.prefill_share)
    admission = Admission(
        model_config.vocab_size,
        config.max_context_tokens,
        plan.num_slots,
        plan.num_blocks,
        config.prefill_chunk_tokens,
        plan.num_archive_blocks,
        plan.bytes_per_archived_block,
        plan.num_fetched_blocks,
    )
    vocabulary = TokenTrie(tokenizer.token_bytes, tokenizer.vocab_size, tokenizer.eos_ids)
    weights = weights_digest(directory)

    def engine() -> Engine:
        scheduler = Scheduler(runner, runner.capacity(config.saved_bytes), budget, config.max_waiting)
        return Engine(runner, scheduler, tokenizer, vocabulary, admission, policy, stats, weights=weights)

    # By one of its own, whose counters nobody sees.
    _rehearse(engine())
    loaded = engine()
    report = LoadReport(
        directory=directory,
        num_parameters=model_config.num_parameters(),
        plan=plan,
        device=Choice(config.device, "as configured"),
        dtype=Choice(config.dtype.value, _dtype_reason(config)),
        threads=Choice(str(config.num_threads), f"of {num_usable_cores()} usable cores"),
        kernels=Choice(kernels.name, kernels_reason),
        policy=Choice(str(policy), "as configured" if config.policy else "the checkpoint's own"),
        seconds=time.perf_counter() - started,
    )
    return loaded, report


def _rehearse(engine: Engine) -> None:
    """Answer a made-up prompt and forget it, so that no first request waits for what is made at first use."""
    prompt = array("i", [0]) * min(REHEARSED_TOKENS, engine.stats().max_context_tokens - 2)
    if not prompt:
        return
    sampling = SamplingParams(max_tokens=2, temperature=0.0)
    engine.submit(GenerationRequest("rehearsal", prompt, sampling))
    while engine.has_work():
        engine.step()
    engine.forget("default", engine.policy, prompt, 0)
    # The tokenizer starts its threads and the template is compiled at their first text. Some templates refuse this one.
    engine.tokenizer.encode("Once upon a time. " * REHEARSED_TOKENS)
    if engine.tokenizer.has_chat_template:
        with suppress(ModelError):
            engine.tokenizer.encode_chat([{"role": "user", "content": "Hello"}])
    engine.check()


def choose_device() -> tuple[str, str]:
    """The device to run on and why: a CUDA device if torch sees one, else the CPU."""
    if torch.cuda.is_available():
        return "cuda", f"torch sees {torch.cuda.get_device_name(0)}"
    return "cpu", "torch sees no CUDA device"


def choose_dtype(device: str) -> tuple[Dtype, str]:
    """The dtype for weights and keys/values and why: bfloat16 where the hardware multiplies it, else float32."""
    if device != "cpu":
        return Dtype.BFLOAT16, f"{device} multiplies bfloat16"
    flags = _cpu_flags()
    for flag in ("amx_bf16", "avx512_bf16"):
        if flag in flags:
            return Dtype.BFLOAT16, f"the CPU has {flag}"
    return Dtype.FLOAT32, "the CPU has neither amx_bf16 nor avx512_bf16"


def num_usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _kernels(config: EngineConfig, model: ModelConfig) -> tuple[Kernels, str]:
    if config.kernels is None:
        return choose(config.device, config.num_threads, model)
    try:
        return forced(config.kernels, config.num_threads, config.device, model), "as configured"
    except ValueError as error:
        raise ConfigInvalid("kernels", config.kernels, "kernels that work here", str(error)) from error


def _require_products(config: EngineConfig, kernels: Kernels, reason: str) -> None:
    if config.dtype is not Dtype.INT8 or (config.device == "cpu" and kernels.product is not None):
        return
    expected = "one that the kernels multiply: int8 is for the native ones on a CPU"
    remedy = f"device {config.device} has kernels {kernels.name!r} ({reason}); set FANO_DTYPE to bfloat16 or float32"
    raise ConfigInvalid("dtype", config.dtype.value, expected, remedy)


def _require_select(policy: AttentionPolicy) -> None:
    if policy.select > MOST_SELECTED:
        raise ConfigInvalid("policy.select", policy.select, f"at most {MOST_SELECTED} blocks", "lower FANO_SELECT")


def _require_index(config: EngineConfig) -> None:
    if not config.archive_index_blocks:
        return
    remedy = "set FANO_ARCHIVE_INDEX_BLOCKS=0, which scans every summary"
    if config.device != "cpu":
        raise ConfigInvalid(
            "archive_index_blocks", config.archive_index_blocks, f"0 on device {config.device!r}", remedy
        )
    if find_spec("faiss") is None:
        expected = "0: FAISS, which makes the indexes, is not installed"
        remedy = f"install it with the extra 'cpu' (faiss-cpu), or {remedy}"
        raise ConfigInvalid("archive_index_blocks", config.archive_index_blocks, expected, remedy)


def _require_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigInvalid(
            "device", device, "a device torch can use", "take cpu, or install a torch for it"
        ) from error


def _dtype_reason(config: EngineConfig) -> str:
    dtype, reason = choose_dtype(config.device)
    return reason if dtype is config.dtype else f"as configured; {dtype.value} would be chosen, for {reason}"


def _cpu_flags() -> frozenset[str]:
    """Features of the CPU as Linux names them; none where it cannot be asked."""
    try:
        lines = CPU_FLAGS_FILE.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return frozenset(flags.split())
