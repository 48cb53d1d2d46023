"""The verbs that look: data on stdout in the format asked for, messages on stderr, bytes of jobs exact."""

import json
import sys

import pytest
import yaml

from pistage.cli import logs
from pistage.cli.progress import Progress
from pistage.client import Chunk
from tests.cli.conftest import AT, FakeMaster, Pistage, step, task


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
    assert pistage("show", "demo#1", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["tasks"][0]["name"] == "a"


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


def test_an_action_is_shown_without_its_control_sequences(pistage: Pistage, capsys: pytest.CaptureFixture[str]) -> None:
    assert pistage("action", "ls") == 0
    assert "registered" in capsys.readouterr().out
    assert pistage("action", "show", "Clone Repo") == 0
    assert capsys.readouterr().out == "name: Clone Repo\n"
    assert pistage("action", "rm", "Clone Repo") == 0


BINARY = bytes(range(256)) * 300 + b"\x1b[31mno newline at the end"


def test_logs_to_a_pipe_are_the_exact_bytes(
    pistage: Pistage, master: FakeMaster, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    master.chunks = [("a", "1", "stdout", BINARY), ("b", "1", "stderr", b"\xff\n"), ("a", "1", "stdout", b"more")]
    for argv, expected in (
        (["demo#1"], BINARY + b"\xff\nmore"),
        (["demo#1", "-f"], BINARY + b"\xff\nmore"),
        (["demo#1/a"], BINARY + b"more"),
        (["demo#1/b/two", "-f"], b"\xff\n"),
        (["demo#1/b/1"], b"\xff\n"),
        (["demo#1", "--stream", "stderr"], b"\xff\n"),
    ):
        assert pistage("logs", *argv) == 0
        assert capfdbinary.readouterr().out == expected


@pytest.mark.parametrize(
    ("data", "count", "tail"),
    [
        (b"1\n2\n3\n", 2, b"2\n3\n"),
        (b"1\n2\n3", 2, b"2\n3"),
        (b"1\n2\n", 5, b"1\n2\n"),
        (b"1\n2\n", 0, b""),
        (b"1", 0, b""),
        (b"", 3, b""),
        (b"\n\n\n", 2, b"\n\n"),
    ],
)
@pytest.mark.parametrize("follow", [[], ["-f"]])
def test_tail_is_the_last_lines(  # noqa: PLR0917 - three fixtures and four columns
    pistage: Pistage,
    master: FakeMaster,
    capfdbinary: pytest.CaptureFixture[bytes],
    data: bytes,
    count: int,
    tail: bytes,
    follow: list[str],
) -> None:
    half = len(data) // 2
    master.chunks = [("a", "1", "stdout", data[:half]), ("a", "1", "stdout", data[half:])]
    assert pistage("logs", "demo#1", "--tail", str(count), *follow) == 0
    assert capfdbinary.readouterr().out == tail


def test_logs_on_a_terminal_are_clean_lines_that_say_where_they_come_from(
    pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    master.chunks = [
        ("a", "1", "stdout", b"\x1b[31mhalf"),
        ("b", "1", "stdout", b"[bold]other\n"),
        ("a", "1", "stdout", b" line\nrest"),
    ]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert pistage("logs", "demo#1") == 0
    assert capsys.readouterr().out == "b/two | [bold]other\na/one | half line\na/one | rest\n"
    assert pistage("logs", "demo#1/a/one", "--timestamps") == 0
    time = AT.format(1)
    assert capsys.readouterr().out == f"{time} half line\n{time} rest\n"
    assert pistage("logs", "demo#1/a/one", "--tail", "1", "-f") == 0
    assert capsys.readouterr().out == "half line\nrest\n"


def test_a_task_or_step_that_is_not_there_is_5_and_lists_those_that_are(
    pistage: Pistage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pistage("logs", "demo#1/c") == 5
    assert "it has a, b" in capsys.readouterr().err
    assert pistage("logs", "demo#1/a/nope") == 5
    assert "it has 1 (one)" in capsys.readouterr().err


def test_names_with_slashes_are_found() -> None:
    run = {"id": "r", "name": "x", "number": 1, "state": "running", "created_at": None}
    progress = Progress(run, {"tasks": [task("build/linux", step("1", "a/b"))]})  # type: ignore[arg-type]
    assert logs._task_and_step(progress, "build/linux") == ("build/linux", None)
    assert logs._task_and_step(progress, "build/linux/a/b") == ("build/linux", "1")
    chunk = Chunk(number=0, task="build/linux", attempt=2, step="1", stream="stdout", at="", data=b"")
    assert progress.label(chunk) == "build/linux/a/b (attempt 2)"
