"""What a prompt is made of, for who searches it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A stretch of one message of a prompt, which is called ``name``; it begins at its character ``start``."""

    name: str
    start: int
    text: str
