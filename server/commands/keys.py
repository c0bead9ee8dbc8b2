"""``fano keys``: make, list and revoke the keys of tenants, while a server runs or not."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from server.commands.one_line import errors_as_one_line
from server.keys import DEFAULT_TENANT, Key, Keys, KeysError
from server.settings import SettingsInvalid, load_settings

keys = typer.Typer(
    name="keys",
    help="Keys of tenants. A running server on the same data directory follows at its next request.",
    no_args_is_help=True,
)

DataDir = Annotated[Path | None, typer.Option(help="The data directory of the server.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@keys.command()
def add(
    name: Annotated[str, typer.Argument(help="What the key is for, to know it again.")],
    tenant: Annotated[str, typer.Option(help="Whose documents it opens.")] = DEFAULT_TENANT,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it, this once: only its hash is kept.

    The first key ends the time in which anyone on this machine was served without one, also on a server that runs.
    To replace a key, add a second one, put it where the first was used, and revoke the first.
    """
    with errors_as_one_line(SettingsInvalid, KeysError, OSError):
        store = _keys(data_dir)
        is_first = not store.list()
        key, text = store.add(name, tenant)
    if as_json:
        typer.echo(json.dumps(asdict(key) | {"key": text}, indent=2))
        return
    typer.echo(text)
    typer.echo(f"Key {key.name!r} ({key.id}) of tenant {key.tenant!r}. It is not shown again.", err=True)
    if is_first:
        typer.echo("From now on every request needs a key, also on this machine.", err=True)


@keys.command(name="list")
def list_keys(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """List all keys, revoked ones among them, with the last four characters of each."""
    with errors_as_one_line(SettingsInvalid, KeysError, OSError):
        store = _keys(data_dir)
        every = store.list()
    if as_json:
        typer.echo(json.dumps([asdict(key) for key in every], indent=2))
        return
    if not every:
        typer.echo(f"No keys in {store.path.parent} yet; `fano keys add NAME` makes one.", err=True)
        return
    rows = [("ID", "NAME", "TENANT", "KEY", "CREATED", "REVOKED"), *map(_row, every)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID|NAME", help="The key's id, or its name.")],
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Revoke a key for good. What its tenant keeps stays. Revoking the last key lets nobody in, not everybody."""
    with errors_as_one_line(SettingsInvalid, KeysError, OSError):
        store = _keys(data_dir)
        ended, is_new = store.revoke(key)
        num_left = sum(each.revoked_at is None for each in store.list())
    if as_json:
        typer.echo(json.dumps(asdict(ended), indent=2))
        return
    was = "is revoked" if is_new else f"was revoked {_time(ended.revoked_at)}"
    typer.echo(f"Key {ended.name!r} ({ended.id}) of tenant {ended.tenant!r} {was}; {num_left} in use.")


def _keys(data_dir: Path | None) -> Keys:
    return Keys(load_settings({"data_dir": data_dir}).data_dir)


def _row(key: Key) -> tuple[str, ...]:
    return key.id, key.name, key.tenant, f"...{key.last4}", _time(key.created_at), _time(key.revoked_at)


def _time(seconds: int | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
