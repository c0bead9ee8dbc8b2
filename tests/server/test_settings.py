"""Settings refuse what makes no sense, by name."""

from pathlib import Path

import pytest

from server.settings import Settings, SettingsInvalid, load_settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for key in list(os.environ):
        if key.startswith("FANO_"):
            monkeypatch.delenv(key)


def test_defaults_serve_this_machine_only() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.on_loopback) == ("127.0.0.1", 8000, True)
    assert settings.max_upload_bytes == 200_000_000 and settings.max_text_characters == 20_000_000
    assert settings.data_dir.is_absolute() and settings.data_dir.name == "fano"


def test_the_environment_counts_and_options_count_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FANO_PORT", "9000")
    monkeypatch.setenv("FANO_OPEN_METRICS", "true")
    monkeypatch.setenv("FANO_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("FANO_API_KEY", "")
    settings = load_settings({"port": None, "host": None})
    assert (settings.port, settings.open_metrics, settings.data_dir, settings.api_key) == (9000, True, tmp_path, None)
    assert load_settings({"port": 9001}).port == 9001


def test_a_secret_is_read_from_its_file_and_a_variable_counts_more(tmp_path: Path) -> None:
    (tmp_path / "fano_api_key").write_text("a-long-random-string\n")
    (tmp_path / "grafana_password").write_text("of somebody else")
    settings = load_settings(secrets_dir=tmp_path)
    assert settings.api_key is not None and settings.api_key.get_secret_value() == "a-long-random-string"
    assert load_settings({"api_key": "another"}, secrets_dir=tmp_path).api_key != settings.api_key
    assert load_settings(secrets_dir=tmp_path / "missing").api_key is None


def test_a_secret_that_says_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fano_api_key").write_text("\n")
    with pytest.raises(SettingsInvalid, match="FANO_API_KEY is empty; write a long random string into its file"):
        load_settings(secrets_dir=tmp_path)

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(tmp_path / "fano_api_key"))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SettingsInvalid, match=r"fano_api_key cannot be read \(Permission denied\); let the server"):
        load_settings(secrets_dir=tmp_path)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingsInvalid, match=r"FANO_MAX_SEQUENCE is not a setting; did you mean FANO_MAX_SEQUENCES\?"):
        load_settings(environ={"FANO_MAX_SEQUENCE": "4", "PATH": "/bin"})
    with pytest.raises(SettingsInvalid, match="known are FANO_ANSWER_MAX_TOKENS, FANO_ANSWER_START"):
        load_settings(environ={"FANO_ZZZZZZZZ": ""})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("port", 70000, "FANO_PORT is 70000"),
        ("window", 100, "FANO_WINDOW is 100: must be a multiple of 64 tokens"),
        ("policy", "endless", "FANO_POLICY is 'endless'"),
        ("threads", 0, "FANO_THREADS is 0"),
        ("dtype", "float16", "FANO_DTYPE is 'float16'"),
    ],
)
def test_a_bad_value_is_named(key: str, value: object, words: str) -> None:
    with pytest.raises(SettingsInvalid, match=words):
        load_settings({key: value})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "fano.example.org"])
def test_another_host_is_none_of_this_machine(host: str) -> None:
    assert load_settings({"host": host}).on_loopback is False


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_names_of_this_machine(host: str) -> None:
    assert load_settings({"host": host}).on_loopback is True


def test_the_key_is_never_shown() -> None:
    settings = load_settings({"api_key": "very-secret-key"})
    assert "very-secret-key" not in repr(settings)
    with pytest.raises(SettingsInvalid) as refused:
        load_settings({"api_key": 5, "port": -1})
    assert "is 5" not in str(refused.value) and "FANO_PORT is -1" in str(refused.value)


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
