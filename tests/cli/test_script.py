"""The verb `script`: what it sends, what it prints, and with which code it leaves."""

import base64
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pistage.core import limits
from tests.cli.conftest import FakeMaster, step, task
from tests.cli.printed import Piece, Printed

Run = Callable[..., int]


@pytest.fixture
def run(master: FakeMaster, pistage: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """Runs `pistage script ARGV` with these bytes, or nothing, on standard input, by a pipe or as a file."""
    monkeypatch.chdir(tmp_path)
    master.plan["tasks"] = [task("main", step("1", "hello.py"))]
    master.printed = Printed([])
    Path("hello.py").write_text("print(1)")
    kept = os.dup(0)

    def called(*argv: str, stdin: bytes | None = None) -> int:
        if stdin is None:
            source = os.open("/dev/null", os.O_RDONLY)
        else:
            Path("input").write_bytes(stdin)
            source = os.open("input", os.O_RDONLY)
        os.dup2(source, 0)
        os.close(source)
        return pistage("script", *argv)

    yield called
    os.dup2(kept, 0)
    os.close(kept)


def sent(master: FakeMaster) -> dict[str, Any]:
    (body,) = [body for method, path, body in master.requests if (method, path) == ("POST", "/scripts")]
    return dict(body)


def test_it_sends_what_it_was_given_and_no_path(run: Run, master: FakeMaster, tmp_path: Path) -> None:
    options = (
        "-r",
        "a==1",
        "-e",
        "X={{ y }}",
        "--timeout",
        "90s",
        "--image",
        "i",
        "--retry",
        "2",
        "--agent-label",
        "ssd",
    )
    assert run(*options, str(tmp_path / "hello.py"), "one", "--two", "-r", "", stdin=b"\xff") == 0
    assert sent(master) == {
        "script": "print(1)", "file": "hello.py", "args": ["one", "--two", "-r", ""], "requirements": ["a==1"],
        "env": {"X": "{{ y }}"}, "timeout": "90s", "image": "i", "retry": 2, "agent": ["ssd"],
        "stdin": {"base64": base64.b64encode(b"\xff").decode()},
    }  # fmt: skip


def test_without_a_word_it_sends_no_more_than_it_must(run: Run, master: FakeMaster) -> None:
    assert run("hello.py") == 0
    assert sent(master) == {"script": "print(1)", "file": "hello.py"}


def test_standard_input_can_be_the_script_or_left_alone(run: Run, master: FakeMaster) -> None:
    assert run("-l", "sh", "-", "x", stdin=b"echo") == 0
    assert sent(master) == {"script": "echo", "file": "script", "language": "sh", "args": ["x"]}
    master.requests.clear()
    assert run("--no-stdin", "hello.py", stdin=b"left alone") == 0
    assert "stdin" not in sent(master)


def test_more_input_than_is_taken_is_refused(run: Run, master: FakeMaster, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("hello.py", stdin=b"x" * (limits.SCRIPT_BYTES_MAX + 1)) == 2
    assert "standard input has more than 1,048,576 bytes" in capsys.readouterr().err
    assert master.requests == []


def test_what_it_prints_is_the_scripts_alone(
    run: Run, master: FakeMaster, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    out, err = b"\0\xff\x1b[2J no newline", b"Traceback\n"
    master.printed = Printed([Piece("main", "1", "stdout", out), Piece("main", "1", "stderr", err)])
    assert run("hello.py") == 0
    assert capfdbinary.readouterr() == (out, err)


def ended(master: FakeMaster, state: str, **attempt: Any) -> None:
    """The run has ended so."""
    master.state = state
    whole = master.run

    def changed() -> dict[str, Any]:
        run = whole()
        run["tasks"][0]["attempts"][0] |= attempt
        return run

    master.run = changed  # type: ignore[method-assign]


FAILED: dict[str, Any] = {"state": "failed", "exit_code": None}
ENDS: list[tuple[dict[str, Any], int, str]] = [
    (FAILED | {"failure": "failure", "exit_code": 7, "reason": "step 1: the command ended with exit code 7"}, 7, ""),
    (FAILED | {"failure": "failure", "exit_code": 137, "reason": "by signal 9 (SIGKILL)"}, 137, "SIGKILL"),
    (FAILED | {"failure": "oom", "exit_code": 137, "reason": "more memory than its limit"}, 137, "more memory"),
    (FAILED | {"failure": "timeout", "reason": "ran longer than 2 s"}, 124, "ran longer"),
    (FAILED | {"failure": "failure", "reason": "pip ended with exit code 1"}, 1, "pip ended"),
    (FAILED | {"failure": "pull", "reason": "no image"}, 1, "no image"),
    (FAILED | {"failure": "refused", "reason": "not here"}, 1, "not here"),
    ({"state": "lost", "failure": "lost", "exit_code": None, "reason": "agent gone"}, 1, "agent gone"),
    ({"state": "cancelled", "failure": None, "exit_code": None, "reason": "as asked"}, 3, "as asked"),
    ({"state": "succeeded", "exit_code": 0}, 0, ""),
]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: f"{end[0].get('failure', 'none')}-{end[1]}")
def test_it_leaves_with_the_scripts_own_code_and_says_what_is_not_its_doing(
    run: Run, master: FakeMaster, capsys: pytest.CaptureFixture[str], end: tuple[dict[str, Any], int, str]
) -> None:
    attempt, code, said = end
    ended(master, **attempt)
    assert run("hello.py") == code
    err = capsys.readouterr().err
    assert said in err
    assert bool(err) == bool(said), err


REFUSED = [
    (("nowhere.py",), 5, "cannot read nowhere.py"),
    (("nul.py",), 2, "NUL"),
    (("latin.py",), 2, "not UTF-8"),
    (("large.py",), 2, "more than 1,048,576 bytes"),
    (("hello.py", os.fsdecode(b"\xff")), 2, "argument 1 is not UTF-8"),
    (("-e", "X", "hello.py"), 2, "--env: expected NAME=VALUE"),
    (("--detach", "--wait", "hello.py"), 2, "give one"),
    ((), 2, "FILE"),
]


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused[2])
def test_what_cannot_be_sent_is_said_before_anything_is(
    run: Run, master: FakeMaster, capsys: pytest.CaptureFixture[str], refused: tuple[tuple[str, ...], int, str]
) -> None:
    argv, code, told = refused
    Path("nul.py").write_bytes(b"a\0")
    Path("latin.py").write_bytes(b"\xe9")
    Path("large.py").write_bytes(b"#" * (limits.SCRIPT_BYTES_MAX + 1))
    assert run(*argv) == code
    assert told in capsys.readouterr().err
    assert master.requests == []


def test_a_file_whose_name_cannot_be_told_keeps_its_ending(run: Run, master: FakeMaster) -> None:
    name = os.fsdecode(b"odd\xff\n.py")
    Path(name).write_text("print(1)")
    assert run(name) == 0
    assert sent(master)["file"] == "script.py"


def test_its_definition_can_be_seen_without_a_server(
    run: Run, master: FakeMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--document", "hello.py", "{{ .x }}") == 0
    assert '"name": "hello.py"' in capsys.readouterr().out
    assert master.requests == []
