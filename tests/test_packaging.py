"""Three generic top-level names in one distribution: nobody else may own them."""

import tomllib
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = {"server", "model", "retrieval"}


def top_level_names(distribution_files: list[str]) -> set[str]:
    return {file.split("/")[0].removesuffix(".py") for file in distribution_files if not file.startswith("..")}


def test_no_other_distribution_ships_our_top_level_names() -> None:
    rogues = {
        distribution.metadata["Name"]: sorted(names)
        for distribution in distributions()
        if distribution.metadata["Name"] != "fano"
        and (names := OURS & top_level_names([str(file) for file in distribution.files or []]))
    }
    assert rogues == {}


def test_the_distribution_lists_its_packages_by_name_and_refuses_an_upload() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == OURS
    assert "Private :: Do Not Upload" in project["project"]["classifiers"]


def test_every_dependency_is_pinned_in_the_constraints_file() -> None:
    def name(requirement: str) -> str:
        return requirement.split(";")[0].split(">")[0].split("=")[0].strip().lower().replace("_", "-")

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in pin for pin in pins)
    pinned = {name(pin) for pin in pins}
    extras = project["optional-dependencies"]
    wanted = {name(r) for r in [*project["dependencies"], *extras["cpu"], *extras["dev"]]}
    assert wanted - pinned == set()
