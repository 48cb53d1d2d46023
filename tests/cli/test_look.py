"""The verbs that look: data on stdout in the format asked for, messages on stderr."""

import json

import pytest
import yaml

from tests.cli.conftest import FakeMaster, Pistage


def test_ps_prints_a_table_json_yaml_or_names(pistage: Pistage, capsys: pytest.CaptureFixture[str]) -> None:
    assert pistage("ps") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:2] == ["RUN", "STATE"]
    assert table[1].split()[:3] == ["demo#1", "succeeded", "2.00s"]
    assert pistage("ps", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == "01hq"
    assert pistage("ps", "-o", "yaml") == 0
    assert yaml.safe_load(capsys.readouterr().out)[0]["number"] == 1
    assert pistage("ps", "-o", "name") == 0
    assert capsys.readouterr().out == "01hq\n"


def test_show_tells_tasks_and_steps(pistage: Pistage, capsys: pytest.CaptureFixture[str]) -> None:
    assert pistage("show", "demo#1") == 0
    out = capsys.readouterr().out
    assert "demo#1  succeeded after 2.00s" in out
    assert "one [alpine]" in out
    assert "6 B of output\n" in out
    assert pistage("show", "demo#1", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["tasks"][0]["name"] == "a"


def test_show_tells_how_much_of_the_output_is_not_kept(
    pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    master.missing = 2
    assert pistage("show", "demo#1") == 0
    assert "6 B of output, 2 B of that not kept" in capsys.readouterr().out


def test_show_tells_why_a_task_waits_and_cancel_that_it_is_under_way(
    pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = {"name": "a", "state": "queued", "waiting": "box: draining", "needs": [], "attempts": [], "reason": ""}
    whole = FakeMaster.run
    monkeypatch.setattr(FakeMaster, "run", lambda self: whole(self) | {"state": "running", "tasks": [waiting]})
    assert pistage("show", "demo#1") == 0
    assert "a  queued: waits: box: draining" in capsys.readouterr().out
    assert pistage("cancel", "demo#1") == 0
    assert capsys.readouterr().err == "demo#1 is being cancelled\n"


def test_agents_are_listed_and_drained(
    pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pistage("agent", "ls") == 0
    assert "1/8" in capsys.readouterr().out
    assert pistage("agent", "drain", "box") == 0
    assert master.requests[-1][1] == "/agents/ag1/drain"
    assert pistage("agent", "show", "nobody") == 5
    assert "no agent nobody" in capsys.readouterr().err


def test_what_an_action_takes_is_printed_as_json_or_yaml(pistage: Pistage, capsys: pytest.CaptureFixture[str]) -> None:
    assert pistage("action", "schema", "Clone Repo") == 0
    assert json.loads(capsys.readouterr().out) == {
        "title": "Clone Repo",
        "type": "object",
        "additionalProperties": True,
    }
    assert pistage("action", "schema", "Clone Repo", "-o", "yaml") == 0
    assert capsys.readouterr().out == "title: Clone Repo\ntype: object\nadditionalProperties: true\n"


def test_an_action_is_shown_without_its_control_sequences(pistage: Pistage, capsys: pytest.CaptureFixture[str]) -> None:
    assert pistage("action", "ls") == 0
    assert "registered" in capsys.readouterr().out
    assert pistage("action", "show", "Clone Repo") == 0
    assert capsys.readouterr().out == "name: Clone Repo\n"
    assert pistage("action", "rm", "Clone Repo") == 0
