"""``docs/metrics.md``, made of the definitions: ``python -m server.measures.page > docs/metrics.md``."""

import sys
from collections.abc import Sequence

from server.measures import documents, memory, process, requests
from server.measures.measure import Measure

SECTIONS: Sequence[tuple[str, str, Sequence[Measure]]] = (
    ("Memory, disk and sessions",
     "On a CPU the device's pools are host memory too: all host pools, `unaccounted` among them, and all device pools "
     "are together `process_resident_memory_bytes`; on a GPU without the device's.",
     memory.MEASURES),
    ("Requests", "Histograms are over finished requests, and have their `_bucket`, `_sum` and `_count`.",
     requests.MEASURES),
    ("Documents and retrieval", "", documents.MEASURES),
    ("The process", "", process.MEASURES),
)  # fmt: skip

HEAD = """# Metrics

`GET /metrics` is for Prometheus. It needs a key, as any route, unless the host is loopback or `FANO_OPEN_METRICS=true`:

```yaml
scrape_configs:
  - job_name: fano
    authorization: {credentials_file: /etc/prometheus/fano.key}    # a file with a key of `fano keys add`
    static_configs: [{targets: ["fano:8000"]}]
```

A scrape reads the engine's last snapshot and the library's counters: it asks neither the device nor the engine's
thread, and costs the same however many documents there are. Bytes are those of the tensors and files themselves. No
label holds an id of a document, request, session, tenant or anything else that clients make: what can stand in each is
listed here.
The same bill is at `GET /v1/memory` and, live in a terminal, with `fano top`.

This page is made by `python -m server.measures.page` of the definitions that the server uses.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD.rstrip()]
    for title, words, measures in SECTIONS:
        parts += ["", f"## {title}\n", *([f"{words}\n"] if words else [])]
        parts += ["| name | type | unit | what it is | when it is bad |", "|---|---|---|---|---|"]
        parts += [_row(measure) for measure in measures]
        labelled = [measure for measure in measures if measure.labels]
        if labelled:
            parts += ["", "| label | values |", "|---|---|"]
            parts += [row for measure in labelled for row in _label_rows(measure)]
    return "\n".join(parts) + "\n"


def measures() -> list[Measure]:
    """All of them."""
    return [measure for _, _, each in SECTIONS for measure in each]


def _row(measure: Measure) -> str:
    labels = "{" + ", ".join(measure.labels) + "}" if measure.labels else ""
    cells = (f"`{measure.name}{labels}`", measure.kind.value, measure.unit, measure.what, measure.bad)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _label_rows(measure: Measure) -> list[str]:
    rows = []
    for label, values in measure.labels.items():
        told = values if isinstance(values, str) else ", ".join(f"`{value}`" for value in values)
        rows.append(f"| `{measure.name}` {label} | {told} |")
    return rows


if __name__ == "__main__":
    sys.stdout.write(page())
