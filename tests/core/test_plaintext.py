"""Plain text: nothing that commands a terminal gets through, wherever the pieces are cut, and in bounded memory."""

import random
import sys

import pytest

from pistage.core.plaintext import Plain, PlainBytes, plain

_ALPHABET = [*"\x1b[]P\\\x07\x9b\x9d\x9c\n\ra1; m\x18\u202e\té\x00/~"]


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("\x1b[1;32mgreen\x1b[0m\n", "green\n"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP+q544e\x1b\\after", "after"),
        ("\x9b31mC1\x9b0m", "C1"),
        ("\x9d52;c;Zm9v\x9cclipboard", "clipboard"),
        ("\x1b]a title that nothing ends\nthe next line", "\nthe next line"),
        ("\x1b]a title\x1b[31mred", "red"),
        ("\x1b[12\nbroken off", "\nbroken off"),
        ("10%\r20%\rdone\r\n", "10%\n20%\ndone\n"),
        ("\x1b(Bascii\x1b7", "ascii"),
        ("one\ttwo\x08\x00\x7f", "one\ttwo"),
        ("\u202egnp.exe", "gnp.exe"),
        ("Grüße, 世界 🎉", "Grüße, 世界 🎉"),
        ("the end\x1b[3", "the end"),
    ],
)
def test_what_would_command_a_terminal_is_removed(printed: str, shown: str) -> None:
    assert plain(printed) == shown


def test_it_makes_no_difference_where_the_pieces_are_cut() -> None:
    chance = random.Random(9)
    for _ in range(3000):
        text = "".join(chance.choices(_ALPHABET, k=chance.randrange(16)))
        pieces, at = Plain(), 0
        shown = ""
        while at < len(text):
            end = at + chance.randint(1, 4)
            shown += pieces.feed(text[at:end])
            at = end
        shown += pieces.feed("", is_last=True)
        assert shown == plain(text), text
        assert not set(shown) & set("\x1b\r\x07\x9b\x9d\x9c\u202e")


def test_bytes_are_cut_anywhere_too() -> None:
    whole = "é\x1b[31m世界\x1b[0m\r\n".encode() + b"\xff\xe4"
    for cut in range(len(whole)):
        pieces = PlainBytes()
        assert pieces.feed(whole[:cut]) + pieces.feed(whole[cut:], is_last=True) == "é世界\n\ufffd\ufffd"
    assert PlainBytes(has_controls=True).feed(whole, is_last=True) == "é\x1b[31m世界\x1b[0m\r\n\ufffd\ufffd"


@pytest.mark.parametrize("begun", ["\x1b]52;c;", "\x1b[", "\x1b[1 ", "\x1b(", "\x9d", "\r"])
def test_a_sequence_that_never_ends_takes_no_memory(begun: str) -> None:
    pieces = Plain()
    pieces.feed(begun)
    for _ in range(16):
        pieces.feed(begun[-1] * 65_536)
        held = sum(sys.getsizeof(getattr(pieces, name)) for name in Plain.__slots__)
        assert held < 200
