"""`logs --grep` without a RUN: what many runs printed, a line each, and where to go on."""

import json
import sys
from typing import Any

import pytest

from tests.cli.conftest import AT, FakeMaster, Pistage


def found(number: int, line: int, text: str, **more: Any) -> dict[str, Any]:
    return {
        "kind": "line", "run": f"id{number}", "name": "demo", "number": number, "line": line, "task": "a", "attempt": 1,
        "attempt_id": "x", "step": "1", "stream": "stdout", "at": AT.format(1), "text": text,
    } | more  # fmt: skip


END = {"kind": "end", "next": None, "runs": 2}


def test_each_line_says_which_run_it_is_of(
    pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    master.found = [found(2, 17, "no \x1b[31mspace\rleft"), found(1, 3, "no space"), END]
    assert pistage("logs", "--grep", "no .*", "-E", "-i", "--name", "demo", "--state", "failed", "--limit", "9") == 0
    assert capsys.readouterr() == ("demo#2 a/1 17 | no space left\ndemo#1 a/1 3 | no space\n", "")
    assert master.requests[-1][1] == "/logs"
    assert master.queries[-1] == {
        "grep": "no .*", "regex": "1", "ignore_case": "1", "name": "demo", "state": "failed", "limit": "9",
    }  # fmt: skip
    assert pistage("logs", "--grep", "no", "--timestamps") == 0
    assert capsys.readouterr().out.startswith(f"{AT.format(1)} demo#2 a/1 17 | ")


def test_a_search_that_found_more_says_how_to_go_on(
    pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    master.found = [found(2, 17, "x"), END | {"next": "c.1"}]
    assert pistage("logs", "--grep", "x", "--since", "1d", "--limit", "1") == 0
    assert capsys.readouterr().err == "there is more: --cursor c.1\n"
    assert pistage("logs", "--grep", "x", "--cursor", "c.1", "--limit", "1") == 0
    assert master.queries[-1] == {"grep": "x", "cursor": "c.1", "limit": "1"}


def test_a_run_that_cannot_be_searched_is_said_and_keeps_nothing_else_back(
    pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = {"kind": "refused", "run": "id2", "name": "demo", "number": 2, "text": "its files are \x1b[2Jdamaged"}
    master.found = [refused, found(1, 3, "x"), END]
    assert pistage("logs", "--grep", "x") == 0
    assert capsys.readouterr() == ("demo#1 a/1 3 | x\n", "demo#2: its files are damaged\n")


def test_a_search_that_found_nothing_says_where_it_looked(
    pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    master.found = [END]
    assert pistage("logs", "--grep", "x") == 0
    assert capsys.readouterr() == ("", "nothing found in 2 runs\n")


def test_json_of_a_search_is_what_the_master_says(
    pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    master.found = [found(2, 17, "x\x1b"), END]
    assert pistage("logs", "--grep", "x", "-o", "json") == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == master.found


def test_a_long_line_is_shown_in_parts_that_are_clean(
    pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    master.found = [found(1, 0, "x" * 65_536, is_cut=True), found(1, 0, "\x1b[2J\u202eend"), END]
    assert pistage("logs", "--grep", "x") == 0
    *parts, last = capsys.readouterr().out.splitlines()
    assert "".join(part.partition(" | ")[2] for part in parts) == "x" * 65_536
    assert last == "demo#1 a/1 0 | end"
