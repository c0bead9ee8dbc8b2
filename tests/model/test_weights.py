"""Checkpoints on disk: every parameter filled exactly once, or an error that names the tensor."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fakes_model import CHECKPOINT_KINDS, load
from safetensors.torch import load_file, save_file

from model.config import Dtype, ModelConfig
from model.errors import CheckpointNotFound, WeightsMismatch
from model.hybrid import HybridLM
from model.kernels import REFERENCE
from model.weights import INDEX_FILE, SINGLE_FILE, load_weights, resolve_checkpoint

Q_NAME = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def copy(checkpoints, tmp_path):
    """A function that gives a private copy of a checkpoint and its tensors."""

    def make(kind: str = "dense") -> tuple[Path, dict[str, torch.Tensor]]:
        directory = tmp_path / kind
        shutil.copytree(checkpoints[kind].directory, directory)
        return directory, load_file(directory / SINGLE_FILE)

    return make


def save_sharded(directory: Path, shards: list[dict[str, torch.Tensor]]) -> None:
    (directory / SINGLE_FILE).unlink()
    names = [f"model-{index + 1:05}-of-{len(shards):05}.safetensors" for index in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, directory / name)
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    (directory / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("kind", CHECKPOINT_KINDS)
def test_every_element_arrives(kind: str, checkpoints) -> None:
    directory = checkpoints[kind].directory
    config = ModelConfig.from_pretrained(directory)
    model = HybridLM(config, REFERENCE)
    for parameter in model.parameters():
        parameter.fill_(float("nan"))
    load_weights(model, directory)
    model.pack()  # clears what lies beyond the last row and column
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    assert config.num_parameters() == sum(p.numel() for p in checkpoints[kind].reference.parameters())


def test_fused_parameters_hold_their_parts_in_order(checkpoints) -> None:
    directory = checkpoints["experts"].directory
    tensors, model = load_file(directory / SINGLE_FILE), load(directory)
    prefix = "model.layers.1."
    parts = [tensors[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(model.layers[1].mixer.qkv_proj.plain, torch.cat(parts))
    for expert in range(4):
        gate, up, down = (
            tensors[f"{prefix}feed_forward.experts.{expert}.{name}_proj.weight"] for name in ("gate", "up", "down")
        )
        assert torch.equal(model.layers[1].ffn.gate_up[expert].plain, torch.cat((gate, up)))
        assert torch.equal(model.layers[1].ffn.down[expert].plain, down)
    mixer = model.layers[0].mixer
    assert torch.equal(mixer.a, -tensors["model.layers.0.mamba.A_log"].exp().t())
    assert torch.equal(mixer.conv_weight, tensors["model.layers.0.mamba.conv1d.weight"][:, 0].t())


def test_matrices_take_the_asked_dtype_and_the_recurrence_stays_float32(checkpoints) -> None:
    model = load(checkpoints["experts"].directory, Dtype.BFLOAT16)
    halved = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.bfloat16}
    assert {name.split(".", 2)[-1] if name.startswith("layers") else name for name in halved} == {
        "embedding.weight", "head.weight", "mixer.in_proj.weight", "mixer.x_proj.weight", "mixer.out_proj.weight",
        "mixer.qkv_proj.weight", "mixer.o_proj.weight", "ffn.gate_up_proj.weight", "ffn.down_proj.weight",
        *(f"ffn.{name}.{expert}.weight" for name in ("gate_up", "down") for expert in range(4)),
    }  # fmt: skip
    tensors = load_file(checkpoints["experts"].directory / SINGLE_FILE)
    assert torch.equal(model.embedding.plain, tensors["model.embed_tokens.weight"].bfloat16())


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_sharded_checkpoint_equals_a_single_file(num_shards: int, copy, checkpoints) -> None:
    directory, tensors = copy("tied")
    names = sorted(tensors)
    save_sharded(directory, [{name: tensors[name] for name in names[i::num_shards]} for i in range(num_shards)])
    expected = dict(load(checkpoints["tied"].directory).named_parameters())
    for name, parameter in load(directory).named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_a_missing_tensor_is_named(copy) -> None:
    directory, tensors = copy()
    del tensors[Q_NAME]
    save_file(tensors, directory / SINGLE_FILE)
    with pytest.raises(WeightsMismatch, match=f"{Q_NAME} is missing .* 0 more"):
        load(directory)


def test_a_tensor_that_belongs_nowhere_is_named(copy) -> None:
    directory, tensors = copy()
    save_file(tensors | {"model.layers.9.mamba.D": torch.ones(64)}, directory / SINGLE_FILE)
    with pytest.raises(WeightsMismatch, match=r"model\.layers\.9\.mamba\.D .* belongs to no parameter"):
        load(directory)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(copy) -> None:
    directory, tensors = copy()
    # The transposed matrix has as many elements, and must not be taken for it.
    name = "model.layers.0.mamba.x_proj.weight"
    save_file(tensors | {name: tensors[name].t().contiguous()}, directory / SINGLE_FILE)
    with pytest.raises(WeightsMismatch, match=rf"{name} .*\(64, 34\), expected \(34, 64\)"):
        load(directory)


def test_a_quantised_tensor_is_refused(copy) -> None:
    directory, tensors = copy()
    save_file(tensors | {Q_NAME: tensors[Q_NAME].to(torch.int8)}, directory / SINGLE_FILE)
    with pytest.raises(WeightsMismatch, match=rf"{Q_NAME} .* torch\.int8"):
        load(directory)


def test_a_tensor_in_two_shards_is_named(copy) -> None:
    directory, tensors = copy()
    save_sharded(directory, [tensors, {Q_NAME: tensors[Q_NAME]}])
    with pytest.raises(WeightsMismatch, match=f"{Q_NAME} .* twice"):
        load(directory)


def test_a_tied_head_may_stand_beside_the_embedding_if_it_equals_it(copy, checkpoints) -> None:
    directory, tensors = copy("tied")
    embedding = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embedding.clone()}, directory / SINGLE_FILE)
    assert torch.equal(load(directory).embedding.plain, load(checkpoints["tied"].directory).embedding.plain)
    save_file(tensors | {"lm_head.weight": embedding + 1}, directory / SINGLE_FILE)
    with pytest.raises(WeightsMismatch, match=r"lm_head\.weight .* differs"):
        load(directory)


def test_damaged_and_absent_files_are_named(copy) -> None:
    directory, tensors = copy()
    path = directory / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsMismatch, match=f"{SINGLE_FILE} is damaged"):
        load(directory)
    path.unlink()
    with pytest.raises(CheckpointNotFound, match=f"{SINGLE_FILE} does not exist"):
        load(directory)
    (directory / INDEX_FILE).write_text("{}")
    with pytest.raises(WeightsMismatch, match=f"{INDEX_FILE} is not an index"):
        load(directory)
    save_file(tensors, path)
    save_sharded(directory, [tensors, {"other": torch.ones(1)}])
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointNotFound, match=r"model-00002-of-00002\.safetensors does not exist"):
        load(directory)


def test_a_local_directory_is_taken_as_it_is(tmp_path) -> None:
    assert resolve_checkpoint(tmp_path) == tmp_path
    assert resolve_checkpoint(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["no-such-weights", "/no/such/directory", "./owner/name", "a/b/c"])
def test_what_is_neither_a_directory_nor_a_hub_id_is_refused(name: str) -> None:
    with pytest.raises(CheckpointNotFound, match="is not a directory here"):
        resolve_checkpoint(name)


def test_a_hub_id_without_a_network_is_refused_with_the_remedy(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointNotFound, match=r"'owner/name' is neither .* fetch it elsewhere"):
        resolve_checkpoint("owner/name")


def test_a_hub_id_is_fetched_with_weights_config_and_tokenizer(monkeypatch, tmp_path) -> None:
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, allow_patterns: asked.append((name, allow_patterns)) or str(tmp_path),
    )
    assert resolve_checkpoint("owner/name") == tmp_path
    [(name, patterns)] = asked
    assert name == "owner/name"
    assert {"config.json", "*.safetensors", "tokenizer*"} <= set(patterns)
