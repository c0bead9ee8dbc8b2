"""The command line: serve, and ask without a server."""

import asyncio
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer

from server.keys_cli import keys
from server.one_line import errors_as_one_line
from server.settings import SettingsInvalid, load_settings

NOTHING_FOUND = 3

app = typer.Typer(
    name="fano",
    help="A long-context inference server whose memory bill is fixed, printed and true.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(keys, name="keys")

Model = Annotated[str | None, typer.Option(help="Checkpoint directory or hub id [default: the embedded model].")]
DataDir = Annotated[Path | None, typer.Option(help="Where documents and indexes are kept.")]


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if show_version:
        typer.echo(f"fano {version('fano')}")
        raise typer.Exit


@app.command()
def serve(
    model: Model = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [default: 8000].")] = None,
    data_dir: DataDir = None,
) -> None:
    """Start the server. Every setting is also a variable FANO_*, and an option wins over it."""
    from server.keys import KeysError
    from server.logs import configure_logging
    from server.serving import AddressUnavailable
    from server.serving import serve as run

    with errors_as_one_line(SettingsInvalid, AddressUnavailable, KeysError):
        settings = load_settings({"model": model, "host": host, "port": port, "data_dir": data_dir})
        configure_logging(settings.log_level)
        status = run(settings)
    raise typer.Exit(status)


@app.command()
def ask(
    arguments: Annotated[list[str], typer.Argument(metavar="FILE... QUESTION", help="Files, then the question.")],
    recall: Annotated[
        Literal["grounded", "verbatim"], typer.Option(help="Write freely with quotes marked, or quote only.")
    ] = "grounded",
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole answer as one JSON object.")] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of the answer.")] = None,
    model: Model = None,
    data_dir: DataDir = None,
) -> None:
    """Read files and answer a question from them, without a server.

    The files stay in a library of their own in the data directory, so that asking again is quick. The exit
    status is 0 for an answer, 1 for an error, 2 for wrong usage and 3 when the files say nothing about it.
    """
    *files, question = arguments
    if not files or not question.strip():
        raise typer.BadParameter("name at least one file, and the question last", param_hint="FILE... QUESTION")
    from model.errors import ModelError
    from retrieval.errors import RetrievalError
    from server.logs import configure_logging
    from server.oneshot import FileRefused, answer_from_files
    from server.terminal import print_answer

    with errors_as_one_line(SettingsInvalid, FileRefused, ModelError, RetrievalError, OSError):
        configure_logging("warning")
        settings = load_settings({"model": model, "data_dir": data_dir})
        view = asyncio.run(answer_from_files(settings, [Path(file) for file in files], question, recall, max_tokens))
    if as_json:
        typer.echo(view.model_dump_json(indent=2))
    else:
        print_answer(view)
    raise typer.Exit(0 if view.found else NOTHING_FOUND)


@app.command()
def plan(
    model: Annotated[
        Path | None, typer.Argument(help="Checkpoint directory or config.json [default: embedded].")
    ] = None,
    context: Annotated[str, typer.Option(help="Tokens of a session: 4096, 32K, 1M.")] = "1M",
    sessions: Annotated[int, typer.Option(min=1, help="Sessions that are resident at once.")] = 8,
    policy: Annotated[
        Literal["full", "window"] | None, typer.Option(help="Attention policy [default: the checkpoint's].")
    ] = None,
    sinks: Annotated[int | None, typer.Option(min=0, help="Sink tokens under policy window.")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Window tokens under policy window.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "int8"], typer.Option(help="Type of weights and keys/values.")
    ] = "bfloat16",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the server [default: all cores].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the bill as one JSON object.")] = False,
) -> None:
    """Print the memory bill of a model before anything is loaded; its config.json is enough.

    Device memory is allocated at the start, exactly as planned, and never grows.
    """
    import json
    import os

    from rich.console import Console

    from model.config import Dtype
    from model.errors import ModelError
    from model.policy import PolicyName
    from server.planning import parse_size, plan_bill, print_bill
    from server.services import embedded_checkpoint

    with errors_as_one_line(ModelError, ValueError):
        path = embedded_checkpoint() if model is None else model
        chosen = None if policy is None else PolicyName(policy)
        num_threads = threads or len(os.sched_getaffinity(0))
        size = parse_size(context)
        bill = plan_bill(path, size, sessions, Dtype(dtype), chosen, num_threads, sinks=sinks, window=window)
    if as_json:
        typer.echo(json.dumps(bill.as_json(), indent=2))
    else:
        print_bill(bill, path.name, Console())
