import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes_engine import write_tokenizer
from fakes_model import TINY_CONFIG
from fakes_triton import CallingRecorder, TabledReference
from safetensors.torch import save_file

from model.cache.block_pool import BlockPool
from model.cache.fetched_blocks import FetchedBlocks
from model.cache.plan import MemoryPlan
from model.cache.state_pool import StatePool
from model.config import Dtype, EngineConfig, ModelConfig
from model.decode_graphs import DecodeGraphs
from model.engine import loader
from model.engine.engine import Engine
from model.engine.loader import load_engine
from model.engine.request import FinishReason, GenerationRequest, SamplingParams
from model.errors import CheckpointNotFound, ConfigInvalid, InvalidRequest
from model.hybrid import HybridLM
from model.kernels.build import build
from model.policy import AttentionPolicy, PolicyName

WINDOW = AttentionPolicy(PolicyName.WINDOW, sinks=64, window=128)
ARCHIVE = AttentionPolicy(PolicyName.ARCHIVE, sinks=64, window=64, select=2)
CONFIG = TINY_CONFIG | {
    "vocab_size": 604,
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
    "fano": {"policy": "window", "sinks": 64, "window": 128},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_tokenizer(tmp_path_factory.mktemp("checkpoint"))
    (directory / "config.json").write_text(json.dumps(CONFIG))
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "embed_tokens.weight": (604, 16),
        "final_layernorm.weight": (16,),
        "layers.0.mamba.in_proj.weight": (64, 16),
        "layers.0.mamba.conv1d.weight": (32, 1, 4),
        "layers.0.mamba.conv1d.bias": (32,),
        "layers.0.mamba.x_proj.weight": (10, 32),
        "layers.0.mamba.dt_proj.weight": (32, 2),
        "layers.0.mamba.dt_proj.bias": (32,),
        "layers.0.mamba.dt_layernorm.weight": (2,),
        "layers.0.mamba.b_layernorm.weight": (4,),
        "layers.0.mamba.c_layernorm.weight": (4,),
        "layers.0.mamba.A_log": (32, 4),
        "layers.0.mamba.D": (32,),
        "layers.0.mamba.out_proj.weight": (16, 32),
        "layers.1.self_attn.q_proj.weight": (16, 16),
        "layers.1.self_attn.k_proj.weight": (8, 16),
        "layers.1.self_attn.v_proj.weight": (8, 16),
        "layers.1.self_attn.o_proj.weight": (16, 16),
    }
    for layer in (0, 1):
        for name in ("input_layernorm", "pre_ff_layernorm"):
            shapes[f"layers.{layer}.{name}.weight"] = (16,)
        for name in ("gate_proj", "up_proj", "down_proj"):
            shapes[f"layers.{layer}.feed_forward.{name}.weight"] = (16, 16)
    tensors = {f"model.{name}": 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("dtype", list(Dtype))
def test_a_checkpoint_becomes_an_engine_that_answers(checkpoint: Path, dtype: Dtype) -> None:
    # int8 is for the native kernels.
    kernels = "reference" if dtype is not Dtype.INT8 else "native" if build()[0] else pytest.skip("no native kernels")
    config = EngineConfig(num_slots=2, max_context_tokens=5000, dtype=dtype, kernels=kernels)
    engine, report = load_engine(checkpoint, config)
    ids = engine.tokenizer.encode_chat([{"role": "user", "content": "What is the rent?"}])
    evidence = ("The rent of flat 7B is $1,234.50.",)
    engine.submit(GenerationRequest("a", ids, SamplingParams(max_tokens=40, temperature=0.0), evidence))
    events = []
    while engine.has_work():
        events += engine.step()
    (span,) = events[-1].spans
    assert evidence[0][span.start : span.end] == "".join(event.text for event in events) != ""
    assert events[-1].finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    assert events[-1].usage is not None and events[-1].usage.dtype == dtype.value
    stats = engine.stats()
    plan = MemoryPlan.of(ModelConfig.from_pretrained(checkpoint), config)
    assert {pool: size for pool, size in stats.pool_bytes.items() if pool != "workspace"} == {
        pool: size for pool, size in plan.pool_bytes.items() if pool != "workspace"
    }
    assert (stats.plan_bytes, report.plan) == (plan.pool_bytes, plan)
    assert (stats.build.dtype, stats.build.device) == (dtype.value, "cpu")
    assert stats.build.kernels.split("-")[0] == kernels
    assert stats.build.policy == "window, sinks 64, window 128"
    assert stats.max_context_tokens == 5000


def greedy_tokens(directory: Path, config: EngineConfig) -> tuple[list[list[int]], Engine]:
    """What three requests are answered that are there at once, two of them with the same beginning."""
    engine, _ = load_engine(directory, config)
    prompts = [list(range(5, 5 + length)) for length in (3, 150, 70)]
    tokens: dict[str, list[int]] = {str(index): [] for index in range(len(prompts))}
    for name, prompt in zip(tokens, prompts, strict=True):
        engine.submit(GenerationRequest(name, prompt, SamplingParams(max_tokens=9, temperature=0.0)))
    while engine.has_work():
        for event in engine.step():
            tokens[event.request_id] += event.token_ids
    engine.check()
    return list(tokens.values()), engine


def test_an_engine_replays_its_decode_steps_where_that_was_verified(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig(num_slots=3, max_context_tokens=640, kernels="reference")
    expected, _ = greedy_tokens(checkpoint, config)
    made: list[DecodeGraphs] = []

    def verified(
        model: HybridLM, states: StatePool, blocks: BlockPool, device: str, max_rows: int
    ) -> tuple[DecodeGraphs, str]:
        assert (device, max_rows) == ("cpu", 3)
        made.append(DecodeGraphs(model, states, blocks, CallingRecorder(), max_rows))
        assert made[0].disagreement() is None
        return made[0], "as in a test"

    monkeypatch.setattr(DecodeGraphs, "verified", verified)
    monkeypatch.setattr(loader, "forced", lambda *_: TabledReference().kernels())
    replayed, engine = greedy_tokens(checkpoint, config)
    assert replayed == expected
    assert engine.stats().build.kernels == "tabled"
    assert made[0].num_replayed >= 8


SELECTING = EngineConfig(
    num_slots=3,
    max_context_tokens=900,
    kernels="reference",
    prefill_chunk_tokens=128,
    policy=AttentionPolicy(PolicyName.ARCHIVE, 64, 64, 2),
)


def told_by(engine: Engine) -> dict[str, list[int]]:
    """What requests are answered, two of them with the same beginning, that select among what left their windows."""
    prompts = [[5 + (7 * place) % (590 - seed) for place in range(length)] for seed, length in ((0, 500), (9, 400))]
    prompts.append(prompts[0][:330])
    tokens: dict[str, list[int]] = {str(index): [] for index in range(len(prompts))}
    for name, prompt in zip(tokens, prompts, strict=True):
        sampling = SamplingParams(max_tokens=12, temperature=0.0)
        engine.submit(GenerationRequest(name, prompt, sampling, select_from=200))
    while engine.has_work():
        for event in engine.step():
            tokens[event.request_id] += event.token_ids
    engine.check()
    return tokens


def test_an_engine_that_fetches_says_what_one_on_the_host_says(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device, whose part the host has here; its bill counts what was fetched (law 9)."""
    expected = told_by(load_engine(checkpoint, SELECTING)[0])
    planned = EngineConfig.num_fetched_blocks
    # Whatever the device is, it is none that reads the archive in place.
    monkeypatch.setattr(
        EngineConfig, "num_fetched_blocks", lambda self, model: planned(replace(self, device="cuda"), model)
    )
    made: list[FetchedBlocks] = []

    def fetched_blocks(*given: object) -> FetchedBlocks:
        made.append(FetchedBlocks(*given))
        return made[0]

    monkeypatch.setattr(loader, "FetchedBlocks", fetched_blocks)
    engine, report = load_engine(checkpoint, SELECTING)
    assert told_by(engine) == expected
    (fetched,) = made
    assert fetched.num_fetched > 0 and fetched.num_found > fetched.num_fetched
    plan, stats = report.plan, engine.stats()
    assert plan.num_fetched_blocks == 6 and plan.fetched_bytes == fetched.strips.nbytes == 6 * plan.bytes_per_block
    assert plan.pool_bytes["kv"] == stats.pool_bytes["kv"] == plan.kv_bytes + plan.fetched_bytes
    many = replace(SELECTING.policy, select=7)
    with pytest.raises(InvalidRequest, match=r"policy.select is 7.*at most 6 blocks.*FANO_SELECT.*FANO_MAX_SEQUENCES"):
        engine.submit(GenerationRequest("b", [5], SamplingParams(max_tokens=1), policy=many))


def test_room_for_what_is_fetched_is_taken_where_there_is_an_archive_and_it_is_not_in_place() -> None:
    model = ModelConfig.from_dict(CONFIG)
    on_device = replace(SELECTING, device="cuda", policy=None)
    assert on_device.num_fetched_blocks(model) == 3 * 16
    assert SELECTING.num_fetched_blocks(model) == 0
    assert replace(on_device, archive_bytes=0, archive_disk_bytes=0).num_fetched_blocks(model) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_engine_on_a_device_selects_what_one_on_the_cpu_selects(checkpoint: Path) -> None:
    expected = told_by(load_engine(checkpoint, SELECTING)[0])
    assert told_by(load_engine(checkpoint, replace(SELECTING, device="cuda", kernels=None))[0]) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_engine_on_a_device_says_what_one_on_the_cpu_says(checkpoint: Path) -> None:
    config = EngineConfig(num_slots=3, max_context_tokens=640, kernels="reference")
    expected, _ = greedy_tokens(checkpoint, config)
    found, engine = greedy_tokens(checkpoint, replace(config, device="cuda", kernels="triton"))
    assert found == expected
    assert engine.stats().build.kernels.startswith("triton-sm")


def test_the_report_says_what_was_chosen_and_why(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_cpu_flags", lambda: frozenset({"avx512f", "avx512_bf16"}))
    threads = torch.get_num_threads()
    engine, report = load_engine(checkpoint, EngineConfig(num_slots=1, max_context_tokens=640, kernels="reference"))
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)
    assert engine.policy == WINDOW
    assert str(report.policy) == "window, sinks 64, window 128 (the checkpoint's own)"
    assert str(report.dtype) == "float32 (as configured; bfloat16 would be chosen, for the CPU has avx512_bf16)"
    assert str(report.kernels) == "reference (as configured)"
    assert report.num_parameters == ModelConfig.from_pretrained(checkpoint).num_parameters()
    assert "1 slots" in str(report) and "\n" not in str(report)


def test_an_operator_may_choose_another_policy(checkpoint: Path) -> None:
    full = AttentionPolicy(PolicyName.FULL)
    engine, report = load_engine(checkpoint, EngineConfig(num_slots=1, max_context_tokens=640, policy=full))
    assert engine.policy == full
    assert str(report.policy) == "full (as configured)"


@pytest.mark.parametrize(
    ("flags", "dtype", "reason"),
    [
        ({"amx_bf16", "avx512_bf16"}, Dtype.BFLOAT16, "the CPU has amx_bf16"),
        ({"avx512_bf16"}, Dtype.BFLOAT16, "the CPU has avx512_bf16"),
        ({"avx2"}, Dtype.FLOAT32, "the CPU has neither amx_bf16 nor avx512_bf16"),
    ],
)
def test_the_dtype_follows_the_cpu(monkeypatch: pytest.MonkeyPatch, flags: set[str], dtype: Dtype, reason: str) -> None:
    monkeypatch.setattr(loader, "_cpu_flags", lambda: frozenset(flags))
    assert loader.choose_dtype("cpu") == (dtype, reason)
    assert loader.choose_dtype("cuda") == (Dtype.BFLOAT16, "cuda multiplies bfloat16")


def test_flags_are_read_as_linux_writes_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t: x\nflags\t\t: fpu avx512_bf16 sse\n\nflags\t\t: fpu\n")
    monkeypatch.setattr(loader, "CPU_FLAGS_FILE", tmp_path / "cpuinfo")
    assert loader.choose_dtype("cpu")[0] is Dtype.BFLOAT16
    monkeypatch.setattr(loader, "CPU_FLAGS_FILE", tmp_path / "absent")
    assert loader.choose_dtype("cpu")[0] is Dtype.FLOAT32


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_int8_without_kernels_for_it_is_refused_before_anything_is_read(
    device: str, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "_require_device", lambda device: None)
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    config = EngineConfig(dtype=Dtype.INT8, device=device, kernels="reference" if device == "cpu" else None)
    with pytest.raises(ConfigInvalid, match=rf"dtype is 'int8', .*device {device} has .*FANO_DTYPE to bfloat16"):
        load_engine(tmp_path, config)


def test_what_cannot_be_loaded_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound):
        load_engine(tmp_path / "nowhere", EngineConfig())
    with pytest.raises(ConfigInvalid, match="device is 'warp'"):
        load_engine(checkpoint, EngineConfig(device="warp"))
    with pytest.raises(ConfigInvalid, match="kernels is 'magic'"):
        load_engine(checkpoint, EngineConfig(kernels="magic"))
    mixed = tmp_path / "mixed"
    shutil.copytree(checkpoint, mixed)
    (mixed / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 603}))
    with pytest.raises(ConfigInvalid, match="vocab_size is 603"):
        load_engine(mixed, EngineConfig())


def test_without_faiss_the_setting_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    monkeypatch.setattr("model.engine.loader.find_spec", lambda _: None)
    with pytest.raises(
        ConfigInvalid, match=r"archive_index_blocks is 64.*FAISS.*faiss-cpu.*FANO_ARCHIVE_INDEX_BLOCKS=0"
    ):
        load_engine(checkpoint, EngineConfig(archive_index_blocks=64))
    load_engine(checkpoint, EngineConfig(max_context_tokens=640))
    with pytest.raises(ConfigInvalid, match="archive_index_blocks is -1, expected at least 0"):
        EngineConfig(archive_index_blocks=-1)


def test_the_plan_counts_indexes_and_states_differ_by_them(checkpoint: Path) -> None:
    config = EngineConfig(archive_index_blocks=64, archive_bytes=1 << 22, archive_disk_bytes=0, max_context_tokens=640)
    model_config = ModelConfig.from_pretrained(checkpoint)
    plain = replace(config, archive_index_blocks=0)
    block, summary = model_config.archive_bytes_per_block(config.dtype)
    planned, without = (MemoryPlan.of(model_config, each) for each in (config, plain))
    each = planned.bytes_per_archived_block - block - summary
    assert each == -(-model_config.index_bytes(config.dtype, config.archive_index) // 64) > summary
    assert planned.num_archive_blocks == (1 << 22) // (block + summary + each) < without.num_archive_blocks
    indexed, scanned = load_engine(checkpoint, config)[0], load_engine(checkpoint, plain)[0]
    assert indexed.stats().archive_blocks.total == planned.num_archive_blocks
    assert indexed.fingerprint(ARCHIVE).differences(scanned.fingerprint(ARCHIVE)) == ("policy",)
    assert indexed.fingerprint(AttentionPolicy()) == scanned.fingerprint(AttentionPolicy())
