"""One look at a running server: its bill of ``/v1/memory`` and its counts of ``/metrics``, at one moment."""

import json
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_SECONDS = 10.0


class ServerSilent(Exception):
    """The server cannot be asked; the message names its URL, why, and what would help."""


@dataclass(frozen=True, slots=True)
class LiveReading:
    """``memory`` is the object of ``GET /v1/memory``; ``samples`` are by name, then by the values of the labels.

    ``at`` is in monotonic seconds.
    """

    url: str
    memory: Mapping[str, Any]
    samples: Mapping[str, Mapping[tuple[str, ...], float]]
    build: Mapping[str, str] = field(default_factory=dict)
    at: float = field(default_factory=time.monotonic)

    @property
    def stage(self) -> str:
        """Where the process stands."""
        return next((labels[0] for labels, value in self.samples["fano_stage"].items() if value), "unknown")

    def by_label(self, name: str) -> dict[str, int]:
        """A family with one label."""
        return {labels[0]: round(value) for labels, value in self.samples.get(name, {}).items()}

    def value(self, name: str) -> float:
        """A family without labels; 0 where it is not told."""
        return self.samples.get(name, {}).get((), 0.0)

    def tokens_per_second(self, earlier: "LiveReading") -> dict[str, float]:
        """Tokens by kind since then; of prompts only those that were read."""
        seconds = max(1e-6, self.at - earlier.at)
        now, then = self.by_label("fano_tokens_total"), earlier.by_label("fano_tokens_total")
        # A server that was started anew counts from nought.
        more = {kind: max(0, count - then.get(kind, 0)) for kind, count in now.items()}
        return {kind: count / seconds for kind, count in more.items()}

    def as_json(self) -> dict[str, Any]:
        """All of it, in bytes, seconds and counts."""
        families = ("fano_requests", "fano_requests_limit", "fano_tokens_total", "fano_documents")
        told = {name.removeprefix("fano_").removesuffix("_total"): self.by_label(name) for name in families}
        return {
            "url": self.url,
            "build": dict(self.build),
            "stage": self.stage,
            "stage_seconds": round(self.value("fano_stage_seconds"), 3),
            **told,
            "index_lag_documents": round(self.value("fano_index_lag_documents")),
            "disk_free_bytes": round(self.value("fano_disk_free_bytes")),
            "memory": self.memory,
        }


def look(url: str, key: str | None) -> LiveReading:
    """Ask the server at ``url``, with a key where one is given. Raises ``ServerSilent``."""
    url = url.rstrip("/")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ServerSilent(f"--url is {url!r}, expected something like http://127.0.0.1:8000")
    memory = json.loads(_get(f"{url}/v1/memory", key))
    samples: defaultdict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    build: Mapping[str, str] = {}
    for family in text_string_to_metric_families(_get(f"{url}/metrics", key)):
        for sample in family.samples:
            samples[sample.name][tuple(sample.labels.values())] = sample.value
            build = sample.labels if sample.name == "fano_build_info" else build
    return LiveReading(url, memory, dict(samples), build)


def _get(url: str, key: str | None) -> str:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS) as reply:
            text: str = reply.read().decode()
            return text
    except urllib.error.HTTPError as error:
        with error:
            raise ServerSilent(f"{url} answered {error.code}: {_message(error)}") from None
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        reason = getattr(reason, "strerror", None) or reason
        raise ServerSilent(f"{url} cannot be reached ({reason}); start a server, or name it with --url") from None


def _message(error: urllib.error.HTTPError) -> str:
    if error.code == 401:
        return "it needs a key; set FANO_API_KEY to one of `fano keys add`"
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
