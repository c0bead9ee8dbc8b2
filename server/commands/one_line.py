"""How a command ends on an error that was to be expected."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

FAILED = 1


@contextmanager
def errors_as_one_line(*expected: type[Exception]) -> Iterator[None]:
    """Print an expected error as one line on standard error and exit with 1."""
    try:
        yield
    except expected as error:
        line = " ".join(str(error).split()) or type(error).__name__
        typer.echo(f"fano: {line}", err=True)
        sys.exit(FAILED)
