"""The README is true: its tree, its commands and its links match the repository."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_every_make_command_exists() -> None:
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert named >= {"install", "serve", "test", "check", "bench"}
    assert named <= set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))


def test_the_tree_lists_every_folder_and_only_what_exists() -> None:
    (tree,) = blocks("text")
    listed = {line.split()[0] for line in tree.splitlines() if line.strip()}
    assert {path for path in listed if not (ROOT / path).exists()} == set()
    folders = {f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    ignored = {"build/", "data/", "dist/", "runs/"}
    assert folders - ignored <= listed


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "bench/RESULTS.md"])
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        assert target.startswith("http") or (folder / target).exists(), target


def test_settings_named_in_the_readme_exist() -> None:
    from server.settings import Settings

    fields = {f"FANO_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"\bFANO_[A-Z_]+\b", README))
    assert named and named <= fields


def test_the_project_speaks_of_itself_alone() -> None:
    for page in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md"):
        assert not re.search(r"/work/|/tmp/|\bissue \d", (ROOT / page).read_text())
