"""The verb `logs`: what it asks for, exact bytes to a pipe, JSON as the master says it, errors with their codes."""

import json
import sys

import pytest

from pistage.cli import logs
from pistage.cli.progress import Progress
from pistage.client import Source
from pistage.errors import Code, PistageError
from tests.cli.conftest import FakeMaster, Pistage, step, task
from tests.cli.printed import Piece, gap

BINARY = bytes(range(256)) * 300 + b"\x1b[31mno newline at the end"


def test_logs_to_a_pipe_are_the_exact_bytes(
    pistage: Pistage, master: FakeMaster, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    master.printed.pieces = [
        Piece("a", "1", "stdout", BINARY),
        Piece("b", "1", "stderr", b"\xff\n"),
        Piece("a", "1", "stdout", b"more"),
    ]
    for argv, expected in (
        (["demo#1"], BINARY + b"\xff\nmore"),
        (["demo#1", "-f"], BINARY + b"\xff\nmore"),
        (["demo#1/a"], BINARY + b"more"),
        (["demo#1/b/two", "-f"], b"\xff\n"),
        (["demo#1/b/1"], b"\xff\n"),
        (["demo#1", "--stream", "stderr"], b"\xff\n"),
    ):
        assert pistage("logs", *argv) == 0
        assert capfdbinary.readouterr() == (expected, b"")


@pytest.mark.parametrize(
    ("data", "count", "tail"),
    [
        (b"1\n2\n3\n", 2, b"2\n3\n"),
        (b"1\n2\n3", 2, b"2\n3"),
        (b"1\n2\n", 5, b"1\n2\n"),
        (b"1\n2\n", 0, b""),
        (b"1", 0, b""),
        (b"1", 1, b"1"),
        (b"", 3, b""),
        (b"\n\n\n", 2, b"\n\n"),
        (b"1\n\xff\r\x1b[2J\n\xfe", 2, b"\xff\r\x1b[2J\n\xfe"),
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
    master.printed.pieces = [Piece("a", "1", "stdout", data[:half]), Piece("a", "1", "stdout", data[half:])]
    assert pistage("logs", "demo#1", "--tail", str(count), *follow) == 0
    assert capfdbinary.readouterr().out == tail


def test_a_tail_does_not_ask_for_what_is_before_it(
    pistage: Pistage, master: FakeMaster, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    master.printed.pieces = [Piece("a", "1", "stdout", b"%d\n" % number) for number in range(1000)]
    assert pistage("logs", "demo#1", "--tail", "3") == 0
    assert capfdbinary.readouterr().out == b"997\n998\n999\n"
    assert [query for query in master.queries if "offset" in query] == [
        {"by": "line", "offset": "-3", "limit": "1"},
        {"by": "line", "offset": "997"},
    ]


def test_a_limit_is_so_many_lines(
    pistage: Pistage, master: FakeMaster, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    master.printed.pieces = [Piece("a", "1", "stdout", b"1\n2\r\n"), Piece("a", "1", "stdout", b"3\n4\n")]
    for argv, expected in (
        (["--limit", "2"], b"1\n2\r\n"),
        (["--limit", "2", "-f"], b"1\n2\r\n"),
        (["--limit", "1", "--tail", "3"], b"2\r\n"),
        (["--limit", "1", "--tail", "3", "--timestamps"], b"2024-01-01T00:00:01.000Z a/one | 2\n"),
    ):
        assert pistage("logs", "demo#1", *argv) == 0
        assert capfdbinary.readouterr().out == expected


def test_since_and_until_are_asked_for_in_utc(
    pistage: Pistage, master: FakeMaster, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    master.printed.pieces = [Piece("a", "1", "stdout", b"%d\n" % second, second) for second in range(6)]
    since, until = "2024-01-01T01:00:02+01:00", "2024-01-01T00:00:03.9991Z"
    assert pistage("logs", "demo#1", "--since", since, "--until", until) == 0
    assert capfdbinary.readouterr().out == b"2\n3\n"
    assert master.queries[-1]["since"] == "2024-01-01T00:00:02.000Z"
    assert master.queries[-1]["until"] == "2024-01-01T00:00:04.000Z"
    assert pistage("logs", "demo#1", "--since", "2h", "--until", "1h30m") == 0
    assert capfdbinary.readouterr().out == b""


def test_json_is_what_the_master_says(pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]) -> None:
    master.printed.pieces = [
        Piece("a", "1", "stdout", "ü\n".encode()),
        gap("a", "1", "gone"),
        Piece("b", "1", "stdout", b"\xff"),
    ]
    assert pistage("logs", "demo#1", "-o", "json") == 0
    out = capsys.readouterr().out
    assert [json.loads(line) for line in out.splitlines()] == master.printed.numbered({})
    assert "ü" in out
    assert pistage("logs", "demo#1", "-o", "json", "--tail", "1", "-f") == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == master.printed.lines({"offset": "1"})


def test_json_on_a_terminal_says_the_same_and_commands_nothing(
    pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\x1b[2J\x9b2J\u202e\x7fü\n"
    master.printed.pieces = [Piece("a", "1", "stdout", text.encode())]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert pistage("logs", "demo#1", "-o", "json") == 0
    out = capsys.readouterr().out
    assert json.loads(out)["text"] == text
    assert out.rstrip("\n").isprintable()
    assert "ü" in out


def test_what_is_missing_from_bytes_is_said_beside_them(
    pistage: Pistage, master: FakeMaster, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    master.missing = 4096
    for argv, is_said in ((["demo#1"], True), (["demo#1/b"], False), (["demo#1", "--stream", "stderr"], False)):
        assert pistage("logs", *argv) == 0
        err = capfdbinary.readouterr().err.decode()
        assert ("a/one: 4,096 of 6 bytes on stdout are not here" in err) is is_said


def test_bytes_that_are_lost_are_said_only_where_all_were_asked_for(
    pistage: Pistage, master: FakeMaster, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    master.printed.pieces = [Piece("a", "1", "stdout", b"h\nl")]
    lost = "3 of 6 bytes are lost: the masters that had them are gone"
    for argv, is_said in (
        (["demo#1", "--stream", "stdout"], True),
        (["demo#1/a/one", "--stream", "stdout", "-f"], True),
        (["demo#1", "--stream", "stdout", "--tail", "1"], False),
        (["demo#1", "--stream", "stdout", "--until", "1s"], False),
        (["demo#1", "--stream", "stderr"], False),
    ):
        assert pistage("logs", *argv) == 0
        assert (lost in capfdbinary.readouterr().err.decode()) is is_said
    master.state, master.is_held = "running", True
    assert pistage("logs", "demo#1", "--stream", "stdout") == 0
    assert capfdbinary.readouterr().err == b""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "name a RUN, or search them all with --grep TEXT"),
        (["demo#1", "--since", "yesterday"], "expected a time such as 2026-01-31T09:30:00Z, or how long ago"),
        (["demo#1", "--since", "2024-01-01T00:00:00"], "a time needs its zone"),
        (["demo#1", "--since", "9999999999999999d"], "expected a time"),
        (["demo#1", "--since", "1h", "--until", "2h"], "nothing is before"),
        (["demo#1", "-E"], "--regex and --ignore-case need --grep"),
        (["demo#1", "-i"], "--regex and --ignore-case need --grep"),
        (["demo#1", "-f", "--order", "time"], "--follow goes by arrival"),
        (["demo#1", "--raw", "--ansi"], "take one"),
        (["demo#1", "-o", "json", "--raw"], "-o json has times and text as they are"),
        (["demo#1", "--grep", "x", "--name", "demo"], "--name is for a search over many"),
        (["--grep", "x", "-f"], "--follow is for one RUN"),
        (["--grep", "x", "--tail", "0"], "--tail is for one RUN"),
        (["demo#1", "--tail", "-1"], "-1 is not in the range"),
    ],
)
def test_options_that_make_no_sense_are_2_and_nothing_is_asked(
    pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    assert pistage("logs", *argv) == 2
    assert said in capsys.readouterr().err
    assert master.requests == []


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (PistageError(Code.USAGE, "grep: missing ): at character 4", hint="RE2 has no look-around"), 2),
        (PistageError(Code.NOT_FOUND, "the output of demo#1 was dropped: older than 90 days"), 5),
        (PistageError(Code.FORBIDDEN, "this token may not read"), 4),
    ],
)
def test_what_the_master_refuses_is_said_as_it_says_it(
    pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str], refusal: PistageError, code: int
) -> None:
    master.log_refusal = refusal
    for argv in ([], ["--timestamps"], ["-o", "json"], ["--tail", "3"], ["--grep", "x(", "-E"]):
        assert pistage("logs", "demo#1", *argv) == code
        out, err = capsys.readouterr()
        assert (out, err.splitlines()[0]) == ("", f"error: {refusal.message}")
    assert pistage("logs", "--grep", "x(") == code


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
    source = Source(task="build/linux", attempt=2, step="1", stream="stdout", at="")
    assert progress.label(source) == "build/linux/a/b (attempt 2)"
