"""Why a state was kept where it was: the reasons of a hit. No torch."""

from enum import StrEnum


class Place(StrEnum):
    """The end of a turn, where a request was ended, the end of a prompt or of a message, where two texts part, some way
    before a prompt's end, in passing, or from the disk."""

    TURN = "turn"
    ABORTED = "aborted"
    PROMPT = "prompt"
    MESSAGE = "message"
    DIVERGENCE = "divergence"
    TAIL = "tail"
    INTERVAL = "interval"
    RESTORED = "restored"
