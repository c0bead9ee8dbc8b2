"""A tokenizer whose chat template teaches calls of functions, and an app with it over an engine of random weights."""

import json
import time
from pathlib import Path
from typing import Any

import fakes_world
import pytest
from fakes_engine import write_tokenizer
from fakes_library import FakeLibrary
from fakes_server import MODEL
from fastapi import FastAPI

from model.config import EngineConfig, ModelConfig
from model.kernels import REFERENCE
from model.tokenizer import Tokenizer
from server.answers.inquiry import ServedModel
from server.app import create_app
from server.bills.forecast import Forecaster
from server.metrics import Metrics
from server.services import Services, embedded_checkpoint
from server.settings import Settings

TEMPLATE = (
    "<|startoftext|>{% if tools %}<|system|>Call as <tool_call>{...}</tool_call>:"
    "{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|end|>{% endif %}"
    "{% for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def teach(directory: Path) -> Tokenizer:
    """The tokenizer, written to the directory."""
    path = write_tokenizer(directory) / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    return Tokenizer(directory)


def random_app(directory: Path, taught: Tokenizer) -> FastAPI:
    """An app whose model writes whatever it may."""
    (directory / "world").mkdir()
    tiny = fakes_world.make_world(directory / "world", {1: REFERENCE})
    tiny.tokenizer = taught
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fakes_world, "MAX_CONTEXT", 800)
        engine, _ = tiny.engine(EngineConfig(num_slots=4, num_blocks=60, max_context_tokens=800), time.monotonic)
    settings = Settings(data_dir=directory / "data", read_documents=False)
    forecaster = Forecaster(ModelConfig.from_pretrained(embedded_checkpoint()), EngineConfig())
    model, metrics = ServedModel(MODEL, 0, engine.policy, "float32", 800), Metrics()
    library: Any = FakeLibrary()
    return create_app(settings, Services(settings, metrics, library, engine, taught, model, forecaster), metrics)
