"""The verbs that set up: config, completion, version, and what `serve` refuses."""

import json
import re
from pathlib import Path

import pytest

from pistage import __version__
from pistage.cli.root import execute


def test_config_shows_value_and_origin_and_hides_the_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "master.yaml"
    file.write_text("lease: 5s\n")
    monkeypatch.setenv("PISTAGE_TOKEN", "very secret")
    argv = ["config", "--role", "master", "--config", str(file), "--listen", "127.0.0.1:1", "-o", "json"]
    assert execute(argv) == 0
    out = capsys.readouterr().out
    rows = {row["key"]: row for row in json.loads(out)}
    assert (rows["lease"]["value"], rows["lease"]["origin"]) == (5.0, f"file {file}")
    assert rows["listen"]["origin"] == "flag"
    assert rows["token"]["origin"] == "environment PISTAGE_TOKEN"
    assert "very secret" not in out


def test_the_users_own_file_is_read_by_every_verb(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "config" / "pistage" / "client.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("server: http://127.0.0.1:9\n")
    assert execute(["config", "-o", "json"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["server"] == {
        "key": "server",
        "value": ["http://127.0.0.1:9"],
        "origin": f"file {file}",
        "about": rows["server"]["about"],
    }


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_the_program(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["completion", shell]) == 0
    out, err = capsys.readouterr()
    assert "_PISTAGE_COMPLETE" in out
    assert "to use it" in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_serve_refuses_to_be_open_to_a_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["serve", "--role", "master", "--data-dir", str(tmp_path / "data")]
    for listen in ("0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:0"):
        assert execute([*argv, "--listen", listen]) == 2
        err = capsys.readouterr().err
        assert "no token" in err
        assert "token_file" in err
    assert not (tmp_path / "data").exists()


def test_a_key_of_the_other_role_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["serve", "--role", "agent", "--lease", "3s"]) == 2
    assert "--lease is no key of the agent" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [("90s", "90s"), ("2m", "2m"), ("1.5", "1.5s"), ("3600", "1h"), ("500ms", "0.5s")],
)
def test_config_shows_durations_as_people_write_them(given: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["config", "--role", "master", "--lease", given]) == 0
    assert re.search(rf"^lease +{told} +flag", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("given", "told"), [("2G", "2Gi"), ("1536Mi", "1536Mi"), ("1000", "1000"), ("0", "0"), ("2048", "2Ki")]
)
def test_config_shows_sizes_as_people_write_them(given: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["config", "--role", "agent", "--memory", given]) == 0
    assert re.search(rf"^memory +{told} +flag", capsys.readouterr().out, re.MULTILINE)
    assert execute(["config", "--role", "agent", "--memory", given, "-o", "json"]) == 0
    items = {item["key"]: item["value"] for item in json.loads(capsys.readouterr().out)}
    assert isinstance(items["memory"], int)


def test_a_value_that_is_no_duration_or_size_is_told_what_one_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["config", "--role", "master", "--lease", "abc"]) == 2
    assert "lease (flag): expected a duration such as 90s or 5m" in capsys.readouterr().err
    assert execute(["config", "--role", "agent", "--memory", "lots"]) == 2
    assert "memory (flag): expected a size such as 512Mi" in capsys.readouterr().err
