"""Configuration is resolved once, in order, and says where each value came from."""

from pathlib import Path

import pytest

from pistage.config import AgentConfig, ClientConfig, MasterConfig, is_loopback, load, read_token, split_address
from pistage.core.languages import DEFAULTS, Language
from pistage.errors import PistageError
from pistage.master.api.scripts import languages_of


def test_a_flag_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "master.yaml"
    file.write_text("listen: 127.0.0.1:1\nlease: 5s\nheartbeat: 1500ms\n")
    environ = {"PISTAGE_LISTEN": "127.0.0.1:2", "PISTAGE_LEASE": "7"}
    config = load(MasterConfig, flags={"listen": "127.0.0.1:3", "lease": None}, environ=environ, file=file)
    assert (config.settings.listen, config.settings.lease, config.settings.heartbeat) == ("127.0.0.1:3", 7.0, 1.5)
    assert config.origins["listen"] == "flag"
    assert config.origins["lease"] == "environment PISTAGE_LEASE"
    assert config.origins["heartbeat"] == f"file {file}"
    assert config.origins["data_dir"] == "default"


def test_labels_and_lists_read_the_same_from_text_and_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("labels: {gpu: true, zone: a}\nmasters: [http://a, http://b]\nmemory: 1.5Gi\n")
    from_file = load(AgentConfig, environ={}, file=file).settings
    environ = {"PISTAGE_LABELS": "gpu, zone=a", "PISTAGE_MASTERS": "[http://a, http://b]", "PISTAGE_MEMORY": "1536m"}
    assert load(AgentConfig, environ=environ).settings == from_file


def test_languages_read_the_same_from_a_file_and_as_yaml_in_a_variable(tmp_path: Path) -> None:
    text = "{ruby: {image: 'ruby:3', endings: [rb], command: ruby -w}, python: {installer: none}}"
    file = tmp_path / "master.yaml"
    file.write_text(f"languages: {text}\n")
    from_file = load(MasterConfig, environ={}, file=file).settings
    assert load(MasterConfig, environ={"PISTAGE_LANGUAGES": text}).settings == from_file
    assert languages_of(from_file)["ruby"] == Language(image="ruby:3", endings=(".rb",), command=("ruby", "-w"))
    assert languages_of(from_file)["python"].installer is None
    assert set(languages_of(MasterConfig())) == set(DEFAULTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{python: {imge: x}}", "languages.python.imge"),
        ("{python: {endings: [../x]}}", "languages.python.endings.0"),
        ("{python: {installer: cargo}}", "'pip', 'npm' or 'none'"),
        ("[", "not YAML"),
        ("ruby", "valid dictionary"),
    ],
)
def test_languages_that_are_none_are_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(PistageError) as caught:
        load(MasterConfig, environ={"PISTAGE_LANGUAGES": text})
    assert message in caught.value.message


@pytest.mark.parametrize("index", ["http://[bad/x", "pypi.example.org/simple", "ftp://a/b", "https://"])
def test_an_index_that_is_no_url_is_refused_with_the_place(index: str) -> None:
    with pytest.raises(PistageError, match=r"languages\.python\.index"):
        load(AgentConfig, environ={"PISTAGE_LANGUAGES": f"{{python: {{index: '{index}'}}}}"})


def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("master: http://a\n")
    with pytest.raises(PistageError, match="did you mean masters") as caught:
        load(AgentConfig, environ={}, file=file)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "is not a mapping"),
        ("a: [", "is not YAML"),
        ("slots: 0", "slots .file"),
        ("runtime: podman", "runtime .file"),
    ],
)
def test_a_wrong_file_is_refused_with_its_reason(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    with pytest.raises(PistageError, match=message):
        load(AgentConfig, environ={}, file=file)


def test_the_token_is_read_from_its_file_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(" secret-token \n")
    settings = load(ClientConfig, flags={"token_file": file}, environ={}).settings
    assert read_token(settings) == "secret-token"
    assert "hidden" not in repr(load(ClientConfig, flags={"token": "hidden"}, environ={}).settings)
    file.write_text("")
    with pytest.raises(PistageError, match="is empty"):
        read_token(settings)


def test_an_address_is_host_and_port() -> None:
    assert split_address("127.0.0.1:80") == ("127.0.0.1", 80)
    assert split_address("[::1]:80") == ("::1", 80)
    assert split_address(":80") == ("0.0.0.0", 80)
    with pytest.raises(PistageError, match="HOST:PORT"):
        split_address("localhost")


def test_the_shipped_configuration_files_are_valid() -> None:
    conf = Path(__file__).parent.parent / "conf"
    assert load(MasterConfig, environ={}, file=conf / "master.yaml").settings.lease == 20
    assert load(AgentConfig, environ={}, file=conf / "agent.yaml").settings.runtime == "docker"


def test_only_addresses_of_this_machine_are_loopback() -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert is_loopback(host), host
    for host in ("0.0.0.0", "::", "127.example.com", "127.", "10.0.0.1", ""):
        assert not is_loopback(host), host


@pytest.mark.parametrize("token", ["", " ", "\n"])
def test_an_empty_token_is_refused_rather_than_shown_by_anybody(token: str) -> None:
    with pytest.raises(PistageError, match="the token is empty"):
        read_token(MasterConfig(token=token))
