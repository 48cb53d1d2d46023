"""`lint` and `plan` from the shell: no server needed, the file and line named, 0 with warnings, 2 with errors."""

import json
from pathlib import Path

import pytest
import yaml

from pistage.cli.root import execute
from tests.cli.conftest import FakeMaster, Pistage, step, task

CLONE = "name: Clone Repo\nimage: alpine/git\nrun: git clone {{ .repo }}\n"
BUILD = "name: Build\nuses:\n  main:\n    - dep: Clone Repo\n        with:\n            repo: git@x:a.git\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build.yaml").write_text(BUILD)
    (tmp_path / "actions").mkdir()
    (tmp_path / "actions" / "clone.yaml").write_text(CLONE)
    (tmp_path / "wrong.yaml").write_text("name: Wrong\nuses:\n  main:\n    - {}\n")
    return tmp_path


def test_lint_says_where_and_what_to_do_and_is_2_only_with_errors(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["lint", "build.yaml"]) == 0
    out = capsys.readouterr().out
    assert "build.yaml:4:" in out
    assert "warning:" in out
    assert execute(["lint", "wrong.yaml"]) == 2
    assert capsys.readouterr().out.startswith("wrong.yaml:4:")


def test_lint_shows_a_repaired_text_as_it_was_understood(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["lint", "build.yaml", "--actions", "actions"]) == 0
    out = capsys.readouterr().out
    assert "      with:\n" in out
    assert "not found" not in out


def test_lint_in_json_has_everything_of_each_finding(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["lint", "wrong.yaml", "actions/clone.yaml", "-o", "json"]) == 2
    wrong, clone = json.loads(capsys.readouterr().out)
    assert wrong["file"] == "wrong.yaml"
    assert {"severity", "code", "message", "hint", "path", "line", "column", "action"} <= set(wrong["findings"][0])
    assert clone["findings"] == []
    assert clone["parameters_needed"] == ["repo"]


def test_plan_shows_images_commands_and_where_parameters_came_from(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["plan", "build.yaml", "--actions", "actions"]) == 0
    out = capsys.readouterr().out
    assert "[alpine/git]" in out
    assert "$ git clone git@x:a.git" in out
    assert "repo = git@x:a.git (" in out


def test_plan_takes_parameters_from_the_line_over_those_of_a_file(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "with.yaml").write_text("repo: from file\nport: 0755\n")
    argv = ["plan", "actions/clone.yaml", "--with-file", "with.yaml", "-o", "json"]
    assert execute(argv) == 0
    assert "git clone from file" in capsys.readouterr().out
    assert execute([*argv, "--with", "repo=from line"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["tasks"][0]["body"]["children"][0]["script"] == "git clone from line"
    assert execute([*argv, "--with", "repo"]) == 2
    assert "expected NAME=VALUE" in capsys.readouterr().err


INPUTS = """name: Scale
image: alpine
inputs:
  size: {type: integer, required: true}
  fast: {type: boolean, default: false}
  zones: {type: list, default: [north]}
run: scale {{ .size }} {{ .fast }} {{ .zones | join('+') }}
"""


def test_what_the_line_and_a_file_give_is_read_as_the_inputs_say(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "scale.yaml").write_text(INPUTS)
    (here / "with.yaml").write_text("fast: true\nzones: [a, b]\n")
    (here / "with.json").write_text('{"fast": true, "zones": "a,b"}')
    for file in ("with.yaml", "with.json"):
        assert execute(["plan", "scale.yaml", "--with", "size=3", "--with-file", file]) == 0
        assert "$ scale 3 true a+b" in capsys.readouterr().out


def test_every_wrong_input_is_told_with_the_place_of_its_declaration(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "scale.yaml").write_text(INPUTS)
    assert execute(["plan", "scale.yaml", "--with", "fast=maybe", "--with", "sise=3"]) == 2
    err = capsys.readouterr().err
    assert "scale.yaml:4:3: error: with.size: the input 'size' is not given (give it: an integer)" in err
    assert "scale.yaml:5:3: error: with.fast: the input 'fast' must be true or false, not the text 'maybe'" in err
    assert "with.sise: there is no input 'sise' (did you mean 'size'?)" in err
    assert execute(["plan", "scale.yaml", "-o", "json"]) == 2
    assert [finding["path"] for finding in json.loads(capsys.readouterr().out)["findings"]] == ["with.size"]


def test_lint_tells_what_is_declared_wrongly_and_what_must_be_given(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "scale.yaml").write_text(INPUTS)
    assert execute(["lint", "scale.yaml"]) == 0
    assert "needs parameters size" in capsys.readouterr().err
    (here / "scale.yaml").write_text(INPUTS.replace("default: false", "default: maybe"))
    assert execute(["lint", "scale.yaml"]) == 2
    assert "scale.yaml:5:34: error: inputs.fast.default:" in capsys.readouterr().out


def test_a_plan_that_is_refused_names_file_and_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["plan", "build.yaml"]) == 2
    assert "build.yaml:4:" in capsys.readouterr().err
    assert execute(["plan", "build.yaml", "-o", "yaml"]) == 2
    refused = yaml.safe_load(capsys.readouterr().out)
    assert refused["plan"] is None
    assert refused["findings"][-1]["severity"] == "error"


def test_a_missing_file_and_an_unknown_action_are_5(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target in ("missing.yaml", "dir/missing", "No Such Action"):
        assert execute(["plan", target]) == 5
        assert target in capsys.readouterr().err


def test_a_file_that_is_no_text_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert execute(["lint", "binary.yaml"]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_with_a_server_the_cluster_plans(
    here: Path, pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    master.plan["tasks"] = [task("main", step("1", "one") | {"command": None, "entrypoint": None})]
    assert pistage("plan", "build.yaml", "--from", "main") == 0
    assert master.requests[-1][1:] == ("/plan", {"definition": BUILD, "start_node": "main"})
    assert "entrypoint of the image" in capsys.readouterr().out


def test_put_registers_under_the_name_of_the_document(here: Path, pistage: Pistage, master: FakeMaster) -> None:
    assert pistage("action", "put", "actions/clone.yaml") == 0
    assert master.requests[-1] == ("PUT", "/actions/Clone Repo", CLONE)
    assert pistage("action", "put", "wrong.yaml", "actions/clone.yaml") == 0
    (here / "nameless.yaml").write_text("image: a\nrun: b\n")
    assert pistage("action", "put", "nameless.yaml") == 2


def test_what_is_wrong_is_said_once_and_then_how_much_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["plan", "wrong.yaml"]) == 2
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("wrong.yaml:4:")
    assert last == "error: wrong.yaml was refused: 1 error"


def test_lint_for_scripts_still_says_what_is_wrong(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["lint", "wrong.yaml", "-o", "name"]) == 2
    out, err = capsys.readouterr()
    assert out == "Wrong\n"
    assert err.startswith("wrong.yaml:4:")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("p.yaml", "a: [\n", "p.yaml:2:1: not valid YAML: "),
        ("p.json", '{"a": }', "p.json:1:7: not valid JSON: "),
        ("p.yaml", "- a\n", "p.yaml: expected a mapping of names to values"),
    ],
)
def test_a_file_of_parameters_that_is_wrong_is_told_on_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, told: str
) -> None:
    (here / name).write_text(text)
    assert execute(["plan", "build.yaml", "--with-file", name]) == 2
    assert capsys.readouterr().err.splitlines()[0].startswith(f"error: --with-file {told}")


def test_a_directory_is_not_taken_for_a_definition(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["plan", "./actions"]) == 5
    assert "./actions is a directory" in capsys.readouterr().err


def test_plan_says_when_and_how_often(pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]) -> None:
    common = {"command": None, "entrypoint": None}
    tidy = step("1", "tidy") | common | {"when": "always", "timeout_s": 90.0, "retries": 2}
    plain = step("2", "plain") | common | {"when": "success", "timeout_s": None, "retries": 0}
    terms = {"when": "failure", "timeout_s": 3600.0, "retry": {"limits": {"failure": 1, "lost": 3}}}
    master.plan["tasks"] = [task("main", tidy, plain) | terms]
    assert pistage("plan", "Some Action") == 0
    out = capsys.readouterr().out.splitlines()
    assert "task main (when failure, timeout 1h00m, retry 1)" in out
    assert "  1. tidy — c1 [alpine] (when always, timeout 1m30s, retry 2)" in out
    assert "  2. plain — c1 [alpine]" in out
