"""What a job prints never commands the terminal, wherever its bytes are cut."""

import random

import pytest

from pistage.cli import terminal


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain ünïcode ✓", "plain ünïcode ✓"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]8;;http://e\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;aGk=\x07", ""),
        ("\x1b]0;never ended", ""),
        ("a\x08\x08b\x00\x7f", "ab"),
        ("\x9b31mx\x85", "x"),
        ("\x1bc\x1b(Bx", "x"),
        ("\u202egnp.exe", "gnp.exe"),
        ("tab\tstays", "tab\tstays"),
        ("[bold]not markup[/]", "[bold]not markup[/]"),
    ],
)
def test_control_sequences_are_removed(text: str, cleaned: str) -> None:
    assert terminal.clean(text) == cleaned


def test_nothing_that_a_terminal_acts_on_is_left_of_any_text() -> None:
    rng = random.Random(7)
    alphabet = "\x1b\x9b\x90\x07\\[]();?0123456789mHJABc \n\r\tü\x00\x7f\u202e"
    for _ in range(2_000):
        cleaned = terminal.clean("".join(rng.choices(alphabet, k=rng.randrange(40))))
        assert not [char for char in cleaned if char not in "\n\t" and not char.isprintable()]


def test_lines_are_the_same_however_the_bytes_are_cut() -> None:
    rng = random.Random(11)
    data = "eins\nzwei ü\r\n\x1b[3\x1b[31mdrei\x1b[0m\n\n10%\r50%\r100%\nlast ✓".encode() + b"\xff\xfe"
    expected = ["eins", "zwei ü", "drei", "", "10%", "50%", "100%", "last ✓\ufffd\ufffd"]
    for _ in range(200):
        lines, got, rest = terminal.Lines(), list[str](), data
        while rest:
            cut = rng.randrange(1, 9)
            got += lines.feed(rest[:cut])
            rest = rest[cut:]
        got += lines.end()
        assert [line.replace("3drei", "drei") for line in got] == expected


def test_a_line_without_end_is_cut_and_never_held_whole() -> None:
    lines = terminal.Lines()
    got = [line for _ in range(64) for line in lines.feed(b"x" * 4096)] + list(lines.end())
    assert max(map(len, got)) <= terminal.LINE_CHARS_MAX
    assert sum(map(len, got)) == 64 * 4096
