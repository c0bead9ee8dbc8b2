"""What an app serves, as it is routed, hidden routes among them."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import FastAPI

PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
# The pages about them.
PAGES = ("/openapi.json", "/docs")
# What is mounted: files of the reference.
MOUNTED = ("/docs/assets",)


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    """(method, path template without converters) of every route, but the pages about them."""
    return sorted({each for each in _walked(app.routes) if each[1] not in PAGES})


def parameters_of(path: str) -> list[str]:
    return PARAMETER.findall(path)


def _walked(routes: Sequence[Any]) -> Iterator[tuple[str, str]]:
    for route in routes:
        if hasattr(route, "effective_candidates"):
            yield from _walked(route.effective_candidates())
            continue
        if route.path in MOUNTED:
            continue
        # A mount serves what nobody has listed; whoever adds one has to say here what it is.
        assert route.methods, f"{route} has no methods"
        for method in route.methods - {"HEAD", "OPTIONS"}:
            yield method, PARAMETER.sub(r"{\1}", route.path)
