"""Checkpoints that every test of the model shares, made once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from fakes_model import CHECKPOINT_KINDS, load, make_checkpoint
from transformers import JambaForCausalLM

from model.hybrid import HybridLM
from model.kernels import REFERENCE, Kernels, choose


@dataclass(frozen=True)
class Checkpoint:
    """One random checkpoint: where it is saved, and transformers' model of it."""

    kind: str
    directory: Path
    reference: JambaForCausalLM


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are faster on one thread, and the machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """A checkpoint of every kind in ``CHECKPOINT_KINDS``."""
    made = {}
    for kind in CHECKPOINT_KINDS:
        directory = tmp_path_factory.mktemp(f"checkpoint-{kind}")
        made[kind] = Checkpoint(kind, directory, make_checkpoint(kind, directory))
    return made


@pytest.fixture(scope="session", params=["reference", "native"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Each set of kernels that works on this machine."""
    if request.param == "reference":
        return REFERENCE
    chosen, reason = choose("cpu", 1)
    if chosen is REFERENCE:
        pytest.skip(f"no native kernels here: {reason}")
    return chosen


@pytest.fixture(scope="session")
def dense(checkpoints: dict[str, Checkpoint], kernels: Kernels) -> HybridLM:
    """The dense checkpoint in float32, once per set of kernels."""
    return load(checkpoints["dense"].directory, kernels=kernels)
