"""The command line: serve, ask and ingest without a server, plan, and watch one that runs.

Exit statuses: 0 done, 1 an error (one line on standard error), 2 wrong usage, 3 the files say nothing about the
question, 130 ended by SIGINT. Answers go to standard output, with ``--json`` as one JSON document; everything else goes
to standard error. Colours and bars only where that is a terminal, and no colours with NO_COLOR.
"""

import asyncio
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer

from server.commands.keys import keys
from server.commands.one_line import FAILED, errors_as_one_line
from server.keys import DEFAULT_TENANT, TENANT_NAME
from server.settings import SettingsInvalid, load_settings

NOTHING_FOUND = 3
INTERRUPTED = 130

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
    from server.commands.serve import AddressUnavailable
    from server.commands.serve import serve as run
    from server.keys import KeysError
    from server.logs import configure_logging

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
    if _is_file(question):
        raise typer.BadParameter(f"the question comes last, and {question!r} is a file", param_hint="FILE... QUESTION")
    from model.errors import ModelError
    from retrieval.errors import RetrievalError
    from server.commands.ask import answer_from_files
    from server.commands.local_files import FileRefused
    from server.commands.terminal import print_answer
    from server.logs import configure_logging

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
def ingest(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Text, Markdown, HTML, PDF or Word (.docx).")],
    tenant: Annotated[str, typer.Option(help="Whose documents they become.")] = DEFAULT_TENANT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the documents as one JSON object.")] = False,
    model: Model = None,
    data_dir: DataDir = None,
) -> None:
    """Put files into the data directory as documents and index them, without a server.

    What was interrupted goes on with the same command; a file that is there already is not read again. The model reads
    the documents, unless FANO_READ_DOCUMENTS=false, once a server runs on the directory; they can be asked before. The
    exit status is 0 when all files are documents, 1 when one is not, 2 for wrong usage and 130 when it was interrupted.
    """
    import json

    from model.errors import ModelError
    from retrieval.errors import RetrievalError
    from server.commands.ingest import Interrupted, ingest_files
    from server.commands.terminal import print_documents
    from server.logs import configure_logging
    from server.rendering import document_view

    if not TENANT_NAME.fullmatch(tenant):
        raise typer.BadParameter(f"{tenant!r} is not the name of a tenant", param_hint="--tenant")
    with errors_as_one_line(SettingsInvalid, ModelError, RetrievalError, OSError):
        configure_logging("warning")
        settings = load_settings({"model": model, "data_dir": data_dir})
        try:
            done = ingest_files(settings, files, tenant)
        except Interrupted as interrupted:
            typer.echo(f"fano: {interrupted}", err=True)
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        told = {"documents": [document_view(each).model_dump() for each in done.documents], "refused": done.refused}
        typer.echo(json.dumps(told, indent=2))
    else:
        print_documents(done.documents)
    for reason in done.refused:
        typer.echo(f"fano: {' '.join(reason.split())}", err=True)
    raise typer.Exit(FAILED if done.refused else 0)


@app.command()
def top(
    url: Annotated[str, typer.Option(help="Where the server is.")] = "http://127.0.0.1:8000",
    key: Annotated[
        str | None, typer.Option(envvar="FANO_API_KEY", help="A key of the server; better in FANO_API_KEY than here.")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once; as always where there is no terminal.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Look once, and print one JSON object.")] = False,
) -> None:
    """Watch the memory of a running server: every pool beside its plan or budget, requests, tokens a second, sessions.

    Ends with Ctrl-C (status 130). The status is 1 when the server cannot be asked.
    """
    import json

    from rich.console import Console

    from server.commands.live_reading import ServerSilent, look
    from server.commands.top import show_live, show_once

    console = Console(highlight=False)
    with errors_as_one_line(ServerSilent):
        if as_json:
            typer.echo(json.dumps(look(url, key).as_json(), indent=2))
        elif once or not console.is_terminal:
            show_once(look(url, key), console)
        else:
            show_live(lambda: look(url, key), console, interval)


@app.command()
def plan(
    model: Annotated[
        Path | None, typer.Argument(help="Checkpoint directory or config.json [default: embedded].")
    ] = None,
    context: Annotated[str, typer.Option(help="Tokens of a session: 4096, 32K, 1M.")] = "1M",
    sessions: Annotated[int, typer.Option(min=1, help="Sessions that are resident at once.")] = 8,
    policy: Annotated[
        Literal["full", "window", "archive"] | None, typer.Option(help="Attention policy [default: the checkpoint's].")
    ] = None,
    sinks: Annotated[int | None, typer.Option(min=0, help="Sink tokens under policies window and archive.")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Window tokens under policies window and archive.")] = None,
    select: Annotated[int | None, typer.Option(min=1, help="Blocks that a token selects under policy archive.")] = None,
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
    from server.commands.plan import parse_size, plan_bill, print_bill
    from server.services import embedded_checkpoint

    with errors_as_one_line(ModelError, ValueError):
        path = embedded_checkpoint() if model is None else model
        chosen = None if policy is None else PolicyName(policy)
        num_threads = threads or len(os.sched_getaffinity(0))
        size = parse_size(context)
        numbers = {"sinks": sinks, "window": window, "select": select}
        bill = plan_bill(path, size, sessions, Dtype(dtype), chosen, num_threads, **numbers)
    if as_json:
        typer.echo(json.dumps(bill.as_json(), indent=2))
    else:
        print_bill(bill, path.name, Console())


def _is_file(name: str) -> bool:
    """Whether there is a file of this name; a question may be longer than any."""
    try:
        return Path(name).is_file()
    except OSError:
        return False
