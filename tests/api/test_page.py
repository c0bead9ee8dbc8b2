"""docs/api.md is true: its fields are those of the tables, and each of its eleven tasks is run as it stands there."""

import contextlib
import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api.fields import PAGE, section
from fakes_server import serving

from server.app import create_app
from server.settings import Settings

BASE_URL = "http://127.0.0.1:8000"
TEXT = PAGE.read_text()
# What is seen at the end of each task, in the shell and in Python.
SEEN = {
    "1": ("fano-reader\nall-MiniLM-L6-v2\n", r"\['fano-reader', 'all-MiniLM-L6-v2'\]"),
    "2": (r"data: \[DONE\]\n\n$", r"(stop|length)\n$"),
    "3": (r'"Margarethe Oldenkamp"\n{"type":"file_citation","file_id":"file-', "Margarethe Oldenkamp Margarethe"),
    "4": (
        r'"text":"Margarethe Oldenkamp","annotations":\[{"type":"file_citation"',
        "Margarethe Oldenkamp .*AnnotationFileCitation",
    ),
    "5": ("Invoice QX-7741-B was paid by", "(?s)^lease.txt .*QX-7741-B"),
    "6": ("^resp_", "True"),
    "7": (r'^{"name":"(cat|dog)","legs":[0-4]}\n$', r"name='(cat|dog)' legs=[024]"),
    "8": (r"^\[384,384\]\n", r"^0\.[5-9]"),
    "9": (r"\[-?\d", r"\[\('.*', None\), \('.*', -\d"),
    "10": ('"param":"temperature"', "unsupported_field store req_"),
    "11": (r'(?s)"processed":(\d+).*"quote":"Tobias Wrenfield"', r"(?s)^(\d+) of .*Tobias Wrenfield\n$"),
}


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def tasks() -> dict[str, str]:
    found = re.split(r"^### (\d+)\. .*$", TEXT.partition("\n## Fields")[0], flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The embedded model and a library as they are."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), read_documents=False, threads=1)
    with serving(create_app(settings)) as url:
        yield url


def test_there_are_eleven_and_each_has_both_ways() -> None:
    assert list(tasks()) == list(SEEN) and len(SEEN) == 11
    assert all(len(blocks("bash", task)) == len(blocks("python", task)) == 1 for task in tasks().values())


@pytest.mark.skipif(not all(map(shutil.which, ("curl", "jq"))), reason="the shell's tasks need curl and jq")
def test_the_tasks_work_in_the_shell(url: str, tmp_path: Path) -> None:
    beginning = blocks("bash", TEXT)[0].replace(BASE_URL, url)
    mark = "=== end of task ==="
    script = "\n".join(
        ["set -e", beginning, *(f"{blocks('bash', each)[0]}\necho '{mark}'" for each in tasks().values())]
    )
    ran = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    said = ran.stdout.split(f"{mark}\n")
    for number, seen in zip(SEEN, said, strict=False):
        assert re.search(SEEN[number][0], seen), f"task {number} says {seen!r} {ran.stderr}"
    assert ran.returncode == 0 and len(said) == len(SEEN) + 1, ran.stdout[-2000:] + ran.stderr


def test_the_tasks_work_in_python(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lease.txt").write_text(
        "The lease of the mill began on 1 May 2019.\nInvoice QX-7741-B was paid by Margarethe Oldenkamp.\n"
    )
    names: dict[str, Any] = {}
    exec(blocks("python", TEXT)[0].replace(BASE_URL, url), names)
    for number, task in tasks().items():
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(blocks("python", task)[0], f"task {number}", "exec"), names)
        assert re.search(SEEN[number][1], said.getvalue()), f"task {number} says {said.getvalue()!r}"
    names["client"].close()


def test_the_fields_are_those_of_the_tables() -> None:
    assert section() in TEXT, "run `python tests/api/fields.py`"
