"""The section "Conformance" of docs/api.md: every helper of the official client, and whether a test sees it work.

``python tests/conformance/table.py`` writes it. What is counted are the declarations of the tests beside this file,
and a test that declares a helper fails unless it calls it, with both clients.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
from openai._resource import SyncAPIResource

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "api.md"
BEGIN = "<!-- conformance: written by `python tests/conformance/table.py` -->"
END = "<!-- end of conformance -->"
# The parts of the client that Fano is to serve; the others are other products (images, audio, fine-tuning, ...).
PARTS = ("models", "chat", "completions", "embeddings", "files", "uploads", "vector_stores", "responses")
# Not over HTTP.
LEFT_OUT = {"responses.connect": "a WebSocket"}


def helpers() -> list[str]:
    """Every public method of these parts of the installed client, by its dotted name."""
    client = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9")
    return sorted(name for part in PARTS for name in _walked(getattr(client, part), part))


def _walked(resource: Any, path: str) -> Iterator[str]:
    for name in dir(type(resource)):
        if name.startswith(("_", "with_")):
            continue
        value = getattr(resource, name)
        if isinstance(value, SyncAPIResource):
            yield from _walked(value, f"{path}.{name}")
        elif callable(value):
            yield f"{path}.{name}"


def declared(kind: str) -> dict[str, int]:
    """How many tests declare each helper under ``kind``, which is ``covers`` or ``refuses``."""
    counts: dict[str, int] = {}
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == kind:
                for constant in ast.walk(node):
                    if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                        counts[constant.value] = counts.get(constant.value, 0) + 1
    return counts


def section() -> str:
    """The section as it has to be."""
    works, refused, every = declared("covers"), declared("refuses"), helpers()
    rows = []
    for name in every:
        if name in works:
            what = f"works; {works[name]} tests" if works[name] > 1 else "works; 1 test"
        elif name in refused:
            what = "refused in the error envelope"
        else:
            what = f"not served: {LEFT_OUT[name]}" if name in LEFT_OUT else "NOT TOLD"
        rows.append(f"| `{name}` | {what} |")
    num_works, num_refused = (sum(name in kind for name in every) for kind in (works, refused))
    return "\n".join(
        [
            BEGIN,
            "",
            f"Of {len(every)} helpers of the official Python client, {num_works} work, sync and async, {num_refused} "
            f"are refused and {len(every) - num_works - num_refused} not served. Every object and event that they "
            "got was validated strictly against the client's own types. The 2.x line of the client "
            "passes the same tests; that, the official JavaScript client, LangChain and LlamaIndex are tried by "
            "`make test-all`, and `docs/foreign-clients.json` has the last results.",
            "",
            "| helper | |",
            "| --- | --- |",
            *rows,
            "",
            END,
        ]
    )


def with_section(page: str) -> str:
    """The page with its section as it has to be, which is at the end of a page that has none."""
    if BEGIN not in page:
        return f"{page.rstrip()}\n\n## Conformance\n\n{section()}\n".lstrip()
    before, rest = page.split(BEGIN, 1)
    return before + section() + rest.split(END, 1)[1]


if __name__ == "__main__":
    PAGE.write_text(with_section(PAGE.read_text() if PAGE.exists() else "# The API\n"))
