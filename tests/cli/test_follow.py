"""A run followed: plain lines off a terminal, the graph on one; job text is text in both."""

import io
import logging
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from pistage.cli.live import LiveScreen
from pistage.cli.plain import PlainScreen
from pistage.cli.progress import Progress
from pistage.client import Chunk, Event, Gap
from tests.cli.conftest import AT, FakeMaster, Pistage, step, task
from tests.cli.printed import Piece, gap

RUN: Any = {"id": "r", "name": "demo", "number": 1, "state": "queued", "created_at": AT.format(0), "notes": []}
PLAN = {
    "tasks": [
        task("fetch", step("1", "clone")),
        task("build", step("1", "compile"), step("2", "package"), needs=("fetch",)),
        task("lint", step("1", "check [red]style[/]"), needs=("fetch",)),
    ]
}


def event(kind: str, second: int = 0, **fields: Any) -> Event:
    return Event(id="1", kind=kind, fields=fields | {"at": AT.format(second)})


HISTORY = [
    event("run_started"),
    event("task_assigned", task="fetch", attempt="1"),
    event("attempt_accepted", task="fetch", attempt="1", notes=["images were not used"]),
    event("step_started", task="fetch", step="1", step_name="clone"),
    event("step_finished", 1, task="fetch", step="1", step_name="clone", state="succeeded", exit_code=0),
    event("task_finished", 1, task="fetch", state="succeeded", reason=""),
    event("task_assigned", 1, task="build", attempt="2"),
    event("task_assigned", 1, task="lint", attempt="3"),
    event("step_started", 1, task="build", step="1", step_name="compile"),
    event(
        "step_finished", 3, task="build", step="1", step_name="compile", state="failed", exit_code=2, reason="code 2"
    ),
    event("task_retried", 3, task="build", reason="code 2"),
    event("task_assigned", 4, task="build", attempt="4"),
    event("step_started", 4, task="build", step="1", step_name="compile"),
]


def drawn(history: list[Event], *, width: int = 100, height: int = 40, chunks: tuple[Chunk, ...] = ()) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    screen = LiveScreen(Progress(RUN, PLAN), console)
    for item in history:
        screen.on_event(item)
    for chunk in chunks:
        screen.on_chunk(chunk)
    console.print(screen)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_graph_shows_what_runs_at_once_side_by_side() -> None:
    picture = drawn(HISTORY).splitlines()
    build = next(line for line in picture if "build" in line)
    assert "lint" in build
    assert any("✓ clone  1.00s" in line for line in picture)
    assert any("attempt 2" in line for line in picture)
    assert any("after fetch" in line for line in picture)
    assert any("demo#1" in line and "1/3 tasks" in line for line in picture)
    assert picture[0].startswith("note: images were not used")


def test_names_and_output_are_never_markup_nor_commands() -> None:
    data = b"[blink]x[/] \x1b]0;owned\x07\x1b[2Jy\n"
    chunk = Chunk(number=0, task="lint", attempt=1, step="1", stream="stdout", at="", data=data)
    picture = drawn(HISTORY, chunks=(chunk,))
    assert "check [red]style[/]" in picture
    assert "[blink]x[/] y" in picture
    assert "owned" not in picture
    assert "\x1b]" not in picture


def test_a_gap_is_told_where_it_is() -> None:
    console = Console(file=io.StringIO(), width=100, height=40, force_terminal=True, color_system=None)
    screen = LiveScreen(Progress(RUN, PLAN), console)
    common = {"task": "lint", "attempt": 1, "step": "1", "stream": "stdout", "at": ""}
    screen.on_chunk(Chunk(number=0, data=b"hea", **common))  # type: ignore[arg-type]
    screen.on_gap(Gap(number=1, missing=7, reason="limit", text="7 bytes \x1b[2Jare not kept", **common))  # type: ignore[arg-type]
    screen.on_chunk(Chunk(number=2, data=b"il\n", **common))  # type: ignore[arg-type]
    console.print(screen)
    picture = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    said = [line.partition(" | ")[2].strip() for line in picture if line.startswith("lint/check")]
    assert said == ["hea", "[7 bytes are not kept]", "il"]


def test_a_last_line_without_a_newline_is_in_the_last_picture() -> None:
    console = Console(file=io.StringIO(), width=100, height=40, force_terminal=True, color_system=None)
    screen = LiveScreen(Progress(RUN, PLAN), console)
    screen.on_chunk(Chunk(number=0, task="lint", attempt=1, step="1", stream="stdout", at="", data=b"one\nlast words"))
    screen.on_end(RUN)
    console.print(screen)
    assert "| last words" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_logged_meanwhile_stands_above_the_picture() -> None:
    console = Console(file=io.StringIO(), width=100, height=40, force_terminal=True, color_system=None)
    handler = logging.StreamHandler(sys.stderr)
    before = sys.stderr
    logging.getLogger().addHandler(handler)
    try:
        with LiveScreen(Progress(RUN, PLAN), console):
            logging.getLogger("pistage.client").warning("the master [red]went away")
        assert handler.stream is before
    finally:
        logging.getLogger().removeHandler(handler)
    assert "the master [red]went away\n" in console.file.getvalue()  # type: ignore[attr-defined]


def test_off_a_terminal_the_verdict_comes_after_the_last_words(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainScreen(Progress(RUN, PLAN)) as screen:
        screen.on_chunk(Chunk(number=0, task="lint", attempt=1, step="1", stream="stdout", at="", data=b"last words"))
        screen.on_event(event("run_finished", 2, state="succeeded"))
        assert capsys.readouterr() == ("", "")
        screen.on_end(RUN)
        out, err = capsys.readouterr()
    assert out.endswith("| last words\n")
    assert err.startswith("run demo#1: succeeded")


@pytest.mark.parametrize(
    ("reason", "said"), [("waits before its next try", "waits before its next try"), ("x: full", "waits: x: full")]
)
def test_why_a_task_waits_is_said_once(reason: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    PlainScreen(Progress(RUN, PLAN)).on_waiting("build", reason)
    assert capsys.readouterr().err == f"task build: {said}\n"


def test_a_graph_too_high_for_the_terminal_becomes_a_list() -> None:
    picture = drawn(HISTORY, height=12).splitlines()
    assert len(picture) <= 12
    assert any("build" in line and "compile" in line for line in picture)


def test_a_narrow_terminal_stacks_the_panels() -> None:
    picture = drawn(HISTORY, width=40).splitlines()
    assert max(map(len, picture)) <= 40
    assert not any("build" in line and "lint" in line for line in picture)


def test_a_failed_step_keeps_its_code_until_the_task_is_tried_again() -> None:
    assert "exit code 2" in drawn(HISTORY[:10])
    assert "exit code 2" not in drawn(HISTORY)


def test_events_of_a_newer_master_change_nothing() -> None:
    progress = Progress(RUN, PLAN)
    progress.apply(event("task_teleported", task="build"))
    progress.apply(event("cluster_moved"))
    progress.apply(event("step_started", task="unknown", step="1"))
    assert {work.state for work in progress.tasks.values()} == {"pending"}


def test_off_a_terminal_events_go_to_stderr_and_output_to_stdout(
    pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    master.state = "failed"
    master.events = [
        {"kind": "attempt_accepted", "task": "a", "notes": ["images were not used"]},
        {"kind": "step_started", "task": "a", "step": "1", "step_name": "one", "at": AT.format(0)},
        {"kind": "step_finished", "task": "a", "step": "1", "state": "failed", "reason": "code 3", "at": AT.format(1)},
    ]
    master.printed.pieces += [
        gap("a", "1", "12 bytes are not kept"),
        Piece("b", "1", "stderr", b"\x1b[1mbold\x1b[0m without newline"),
    ]
    assert pistage("run", "Clone Repo", "--with", "repo=x=y") == 1
    out, err = capsys.readouterr()
    assert out == "a/one | hello\na/one | [12 bytes are not kept]\nb/two | bold without newline\n"
    assert "note: images were not used" in err
    assert "step a/one: failed after 1.00s: code 3" in err
    assert "run demo#1: failed" in err
    assert "pistage logs 'demo#1'" in err
    assert master.requests[0][2] == {"action": "Clone Repo", "with": {"repo": "x=y"}}


def test_detach_prints_the_id_and_leaves(
    pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    master.state, master.is_held = "running", True
    assert pistage("run", "demo", "--detach") == 0
    out, err = capsys.readouterr()
    assert out == "01hq\n"
    assert "pistage watch" in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_watch_detaches_and_says_how_to_look_again(master: FakeMaster, number: signal.Signals) -> None:
    master.state, master.is_held = "running", True
    master.events = [{"kind": "step_started", "task": "a", "step": "1", "at": AT.format(0)}]
    watch = subprocess.Popen(
        [sys.executable, "-m", "pistage", "watch", "demo#1"],
        env=os.environ | {"PISTAGE_SERVER": master.url},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    with watch:
        assert watch.stderr is not None
        assert "step a/one: started" in watch.stderr.readline()
        watch.send_signal(number)
        assert "look again with: pistage watch 'demo#1'" in watch.stderr.read()
    assert watch.returncode == 130
