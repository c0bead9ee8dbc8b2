"""Fano beside other engines on the same weights: ``python -m bench.peers``. What is imported from here are servers."""

from bench.peers.servers import (
    Answer,
    Child,
    Listener,
    Message,
    Peer,
    Saved,
    ServerFailed,
    Spent,
    Watch,
    bytes_below,
    free_port,
)

__all__ = [
    "Answer",
    "Child",
    "Listener",
    "Message",
    "Peer",
    "Saved",
    "ServerFailed",
    "Spent",
    "Watch",
    "bytes_below",
    "free_port",
]
