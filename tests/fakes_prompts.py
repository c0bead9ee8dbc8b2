"""A prompt longer than a small window, with one sentence that can be asked for; and what an engine was given."""

import random
from typing import Any

from fakes_server import MODEL, World

from model.policy import AttentionPolicy, PolicyName
from model.tokenizer import Tokenizer

WINDOW = AttentionPolicy(PolicyName.WINDOW, 64, 1024)
WORDS = "harbour winter lantern ledger orchard captain river market garden signal copper meadow".split()
CODE = "The maintenance code of the Halvorsen turbine is QX-7741-B."
ASKED = "What is the maintenance code of the Halvorsen turbine?"


def prose(num_sentences: int, seed: int = 0) -> str:
    dice = random.Random(seed)
    return " ".join(f"{' '.join(dice.choices(WORDS, k=9)).capitalize()}." for _ in range(num_sentences))


PASTED = f"{prose(60)}\n\n{prose(20, 1)} {CODE} {prose(20, 2)}\n\n{prose(60, 3)}"


def chat(*contents: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]
    return {"model": MODEL, "messages": messages, **more}


def prompt_text(world: World, tokenizer: Tokenizer) -> str:
    """The newest request's prompt, as the engine read it."""
    ids = world.engine.requests[-1].prompt_ids
    return b"".join(
        (tokenizer.control_token(each) or "").encode() or tokenizer.token_bytes(each) for each in ids
    ).decode()


def progress_of(received: list[Any]) -> list[Any]:
    return [chunk["prompt_progress"] for chunk in received if "prompt_progress" in chunk]
