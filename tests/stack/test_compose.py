"""docker-compose.yml, as Docker's own Compose understands it. No engine is needed, and no container is started."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from stack.programs import ROOT, program, run

from server.settings import PREFIX, SECRETS_DIR, Settings

FILE = ROOT / "docker-compose.yml"
REQUIRED = ("API_KEY_FILE", "GRAFANA_PASSWORD_FILE")
SERVICES = {"fano", "fano-gpu", "prometheus", "grafana"}


def environment(**variables: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}


FILES = {"API_KEY_FILE": "/keys/fano", "GRAFANA_PASSWORD_FILE": "/keys/grafana"}


def services(compose: str, *options: str, **variables: str) -> dict[str, Any]:
    status, told, failure = run(
        compose, *options, "config", "--format", "json", environ=environment(**FILES, **variables)
    )
    assert status == 0, failure
    return dict(json.loads(told)["services"])


def everything(compose: str) -> dict[str, Any]:
    return services(compose, "--profile", "cpu", "--profile", "gpu")


def by_default_the_server_runs_on_the_cpu(compose: str) -> None:
    found = services(compose)
    assert set(found) == SERVICES - {"fano-gpu"}
    assert found["fano"]["build"]["args"]["EXTRA"] == "cpu"
    assert "devices" not in found["fano"]["deploy"]["resources"].get("reservations", {})


def the_profile_of_a_gpu_replaces_the_server(compose: str) -> None:
    found = services(compose, "--profile", "gpu")
    assert set(found) == SERVICES - {"fano"}
    gpu = found["fano-gpu"]
    assert gpu["build"]["args"]["EXTRA"] == "gpu" and "fano" in gpu["networks"]["stack"]["aliases"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]


def what_is_required_is_refused_by_name(compose: str) -> None:
    for missing in REQUIRED:
        for value in (None, ""):
            given = {name: path for name, path in FILES.items() if name != missing}
            given |= {} if value is None else {missing: value}
            status, _, failure = run(compose, "config", "--quiet", environ=environment(**given))
            assert status != 0 and f"required variable {missing} is missing a value: must name a file" in failure


def each_service_may_do_as_little_as_it_needs(compose: str) -> None:
    for name, service in everything(compose).items():
        uid = int(service["user"].split(":")[0])
        assert uid > 0, name
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        limits = service["deploy"]["resources"]["limits"]
        assert limits["cpus"] and int(limits["memory"]) > 0 and limits["pids"] > 0, name
        assert all(port["host_ip"] == "127.0.0.1" for port in service["ports"]), name
        assert service["restart"] == "unless-stopped" and service["logging"]["options"]["max-size"], name
        assert not {"privileged", "network_mode", "pid", "ipc", "cap_add"} & set(service), name
        # Keys come as files; a password in the environment stands in every listing of containers.
        assert not [key for key in service.get("environment") or {} if re.search("KEY$|PASSWORD$|TOKEN$", key)], name


def what_is_mounted_is_there(compose: str) -> None:
    for service in everything(compose).values():
        for volume in service.get("volumes", ()):
            if volume["type"] == "bind":
                assert volume["read_only"] is True and Path(volume["source"]).is_dir()
    mounted = {v["target"]: Path(v["source"]) for v in everything(compose)["grafana"]["volumes"] if v["type"] == "bind"}
    provider = yaml.safe_load((mounted["/etc/grafana/provisioning"] / "dashboards" / "fano.yml").read_text())
    (entry,) = provider["providers"]
    dashboards = mounted[entry["options"]["path"]]
    home = everything(compose)["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (dashboards / Path(home).name).is_file() and Path(home).parent == Path(entry["options"]["path"])


CHECKS = (
    by_default_the_server_runs_on_the_cpu,
    the_profile_of_a_gpu_replaces_the_server,
    what_is_required_is_refused_by_name,
    each_service_may_do_as_little_as_it_needs,
    what_is_mounted_is_there,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_compose_understands_that(check: Callable[[str], None]) -> None:
    check(program("docker-compose"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compose_understands_all_of_it_where_it_has_to_be_installed_first() -> None:
    compose = program("docker-compose", may_install=True)
    for check in CHECKS:
        check(compose)


def declared() -> Iterator[tuple[str, dict[str, Any]]]:
    yield from yaml.safe_load(FILE.read_text())["services"].items()


def test_images_are_pinned_and_each_service_has_a_health_check() -> None:
    """By what the file says, without Compose: this runs everywhere."""
    from_elsewhere = {name: service for name, service in declared() if "build" not in service}
    assert set(from_elsewhere) == {"prometheus", "grafana"}
    for service in from_elsewhere.values():
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert "HEALTHCHECK" in (ROOT / "deploy" / "Dockerfile").read_text()


def test_prometheus_and_grafana_ask_where_the_others_are() -> None:
    names = dict(declared())
    scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = scrape["scrape_configs"]
    ((target,),) = (config["targets"] for config in job["static_configs"])
    assert target.split(":")[0] in names["fano"]["networks"]["stack"]["aliases"]
    assert names["fano"]["ports"][0].endswith(f":{target.split(':')[1]}")
    secret = Path(job["authorization"]["credentials_file"])
    assert str(secret.parent) == "/run/secrets" and secret.name in names["prometheus"]["secrets"]
    assert secret.name in names["fano"]["secrets"]
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    (datasource,) = source["datasources"]
    assert datasource["url"] == "http://prometheus:9090" and datasource["isDefault"] is True
    assert datasource["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]


def test_secrets_of_the_server_are_its_settings() -> None:
    names = yaml.safe_load(FILE.read_text())["secrets"]
    assert set(names) == {"fano_api_key", "grafana_password"}
    assert "fano_api_key".upper() in {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert SECRETS_DIR == Path("/run/secrets")
