"""What `logs` shows as lines: clean, whole, each with its origin; nothing that a job prints commands a terminal."""

import random
import sys
import tracemalloc
from typing import Any

import pytest

from pistage.cli import terminal
from pistage.cli.loglines import Printer
from pistage.cli.progress import Progress
from pistage.client import Chunk, Line
from tests.cli.conftest import AT, FakeMaster, Pistage, step, task
from tests.cli.printed import Piece, gap

RUN: Any = {"id": "r", "name": "x", "number": 1, "state": "running", "created_at": None}
NASTY = (
    b"\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\\x1bP1$q\x1b\\\n"
    b"safe\rshown instead\r\n"
    b"\x9b2J\xc2\x9b2J\xff\xfe \xe2\x80\xaegnp.exe \xe2\x80\x8fmark\xe2\x81\xa6\xe2\x80\xa8end\x08\x00\x7f\n"
    b"\x1b"
)


@pytest.fixture
def shown(pistage: Pistage, monkeypatch: pytest.MonkeyPatch) -> Pistage:
    """Call a verb as on a terminal."""

    def call(*argv: str) -> int:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)  # the stdout of the test is not there before it runs
        return pistage(*argv)

    return call


def test_logs_on_a_terminal_are_clean_lines_that_say_where_they_come_from(
    shown: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    master.printed.pieces = [
        Piece("a", "1", "stdout", b"\x1b[31mhalf"),
        Piece("b", "1", "stdout", b"[bold]other\n"),
        Piece("a", "1", "stdout", b" line\nrest"),
    ]
    assert shown("logs", "demo#1") == 0
    assert capsys.readouterr().out == "b/two | [bold]other\na/one | half line\na/one | rest\n"
    assert shown("logs", "demo#1/a/one", "--timestamps") == 0
    time = AT.format(1)
    assert capsys.readouterr().out == f"{time} half line\n{time} rest\n"
    assert shown("logs", "demo#1/a/one", "--tail", "1", "-f") == 0
    assert capsys.readouterr().out == "rest\n"
    assert shown("logs", "demo#1/a/one", "--tail", "2", "-f") == 0
    assert capsys.readouterr().out == "half line\nrest\n"


@pytest.mark.parametrize("argv", [[], ["-f"], ["--tail", "9"], ["--grep", "", "--timestamps"], ["--ansi"]])
def test_nothing_that_a_job_prints_commands_the_terminal(
    shown: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    master.printed.pieces = [Piece("a", "1", "stdout", NASTY)]
    assert shown("logs", "demo#1", *argv) == 0
    out = capsys.readouterr().out
    if "--ansi" in argv:
        assert "\x1b[31mred\x1b[0m" in out
        out = out.replace("\x1b[31m", "").replace("\x1b[0m", "")
    assert [char for char in out if not char.isprintable() and char != "\n"] == []
    assert "title" not in out
    assert "evil" not in out
    assert "redlink\n" in out
    assert "\ufffd\ufffd gnp.exe markend" in out


def test_a_carriage_return_ends_a_line_that_is_shown_but_not_one_that_was_searched_for(
    shown: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    master.printed.pieces = [Piece("a", "1", "stdout", b"10%\r100%\r\ndone\n")]
    for argv in (["--tail", "5"], []):
        assert shown("logs", "demo#1/a/one", *argv) == 0
        assert capsys.readouterr().out == "10%\n100%\ndone\n"
    assert shown("logs", "demo#1/a/one", "--grep", "0%") == 0
    assert capsys.readouterr().out == "10% 100%\n"


def test_raw_is_what_the_job_printed(
    shown: Pistage, master: FakeMaster, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    master.printed.pieces = [Piece("a", "1", "stdout", NASTY)]
    assert shown("logs", "demo#1", "--raw") == 0
    assert capfdbinary.readouterr().out == NASTY
    assert shown("logs", "demo#1/a/one", "--raw", "--grep", "red") == 0
    assert capfdbinary.readouterr().out == NASTY.split(b"\n")[0] + b"\n"


def test_colours_are_all_that_is_kept_of_them_and_end_with_their_line() -> None:
    assert terminal.coloured("a\x1b[1;31mb\x1b[2Jc") == "a\x1b[1;31mbc\x1b[0m"
    assert terminal.coloured("\x1b[38:2::1:2:3mx") == "\x1b[38:2::1:2:3mx\x1b[0m"
    for other in ("\x1b[>4;1m", "\x1b[?1m", "\x1b[٣m", "\x1b[1;31", "\x1b[99999m", "\x1b[31 m"):
        assert "\x1b" not in terminal.coloured(f"{other}x")
    assert terminal.coloured("plain ✓") == "plain ✓"
    rng = random.Random(5)
    alphabet = "\x1b\x9b\x90\x07\\[]();?0123456789mHJABc \n\r\tü\x00\x7f\u202e"
    for _ in range(2_000):
        kept = terminal.coloured("".join(rng.choices(alphabet, k=rng.randrange(40))))
        bare = terminal._COLOUR.sub("", kept)
        assert not [char for char in bare if char not in "\n\t" and not char.isprintable()]
        assert bare == kept or kept.endswith("\x1b[0m")


def test_a_gap_stands_in_brackets_where_it_is(
    shown: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    master.printed.pieces = [
        Piece("a", "1", "stdout", b"hea"),
        Piece("b", "1", "stdout", b"other\n"),
        gap("a", "1", "7 bytes \x1b[2Jare not kept"),
        Piece("a", "1", "stdout", b"il\n"),
    ]
    lines = ["b/two | other", "a/one | hea", "a/one | [7 bytes are not kept]", "a/one | il"]
    for argv in ([], ["-f"], ["--limit", "9"]):
        assert shown("logs", "demo#1", *argv) == 0
        assert capsys.readouterr().out.splitlines() == lines
    assert shown("logs", "demo#1", "--grep", "hea|il", "-E") == 0  # each a line of its own, also where nothing says why
    assert capsys.readouterr().out.splitlines() == ["a/one | hea", "a/one | il"]


def test_what_several_steps_printed_is_read_by_its_time_unless_it_is_followed(
    shown: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    master.printed.pieces = [Piece("a", "1", "stdout", b"later\n", 5), Piece("b", "1", "stdout", b"sooner\n", 2)]
    by_time, by_arrival = "b/two | sooner\na/one | later\n", "a/one | later\nb/two | sooner\n"
    for argv, expected in (
        ([], by_time),
        (["--tail", "2"], by_time),
        (["--limit", "1"], "b/two | sooner\n"),
        (["-f"], by_arrival),
        (["-f", "--tail", "2"], by_arrival),
        (["--order", "arrival"], by_arrival),
        (["--grep", "o"], "b/two | sooner\n"),
        (["--grep", "e"], by_arrival),
    ):
        assert shown("logs", "demo#1", *argv) == 0
        assert capsys.readouterr().out == expected
    assert shown("logs", "demo#1/a") == 0
    assert "order" not in master.queries[-1]
    capsys.readouterr()
    assert shown("logs", "demo#1", "--raw", "--order", "time") == 0
    assert master.queries[-1]["order"] == "time"


def test_what_is_said_of_a_whole_task_names_no_step(
    shown: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    dropped = gap("a", "", "what demo#0 printed was dropped", missing=None, reason="retention")
    dropped.stream = ""
    master.printed.pieces.insert(0, dropped)
    assert shown("logs", "demo#1") == 0
    assert capsys.readouterr().out == "a | [what demo#0 printed was dropped]\na/one | hello\n"


def test_lines_off_a_terminal_are_clean_too(
    pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    master.printed.pieces = [Piece("a", "1", "stdout", b"one\n\x1b[1mTwo\n"), Piece("b", "1", "stderr", b"two\n")]
    assert pistage("logs", "demo#1", "--grep", "t.o$", "-E", "-i") == 0
    assert capsys.readouterr().out == "a/one | Two\nb/two | two\n"
    assert master.queries[-1]["grep"] == "t.o$"
    assert pistage("logs", "demo#1", "--grep", "t.o") == 0
    assert capsys.readouterr().out == ""


def test_a_line_of_ten_megabytes_is_shown_in_parts_and_never_held() -> None:
    progress = Progress(RUN, {"tasks": [task("a", step("1", "one"))]})
    common: Any = {"task": "a", "attempt": 1, "step": "1", "stream": "stdout", "at": ""}
    peaks = []
    for items in (
        (Chunk(number=number, data=b"x" * 65_536, **common) for number in range(160)),
        (Line(line=0, text="x" * 65_536, is_cut=number < 159, **common) for number in range(160)),
    ):
        printer, shown = Printer(progress, is_single=True), 0
        tracemalloc.start()
        for item in items:
            for line in printer.lines(item):
                assert len(line) <= terminal.LINE_CHARS_MAX + 1
                shown += len(line) - 1
        shown += sum(len(line) - 1 for line in printer.rest())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert shown == 160 * 65_536
    assert max(peaks) < 2_000_000
