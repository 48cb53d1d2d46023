"""A reader that is cut off anywhere goes on where it stood: nothing twice, nothing missing, whatever is counted."""

import base64
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from pistage.client.places import BytePlace, LinePlace, PiecePlace, bytes_of
from tests.cli.printed import Piece, Printed, gap

TRIALS = 200


def printed_by(rng: random.Random) -> Printed:
    """Output of a few streams in pieces of a few bytes: half lines, empty ones, half characters, gaps."""
    alphabet = [b"\n", b"\n", b"a", b"\xc3", b"\xbc", "✓".encode(), b"\r\n", b"long " * 5]
    pieces = []
    for _ in range(rng.randrange(20)):
        task, stream = rng.choice("ab"), rng.choice(["stdout", "stderr"])
        data = b"".join(rng.choices(alphabet, k=rng.randrange(1, 8)))
        pieces.append(Piece(task, "1", stream, data, second=rng.randrange(9)))
        if rng.random() < 0.2:
            pieces.append(gap(task, "1", "cut", missing=rng.choice([None, 5])))
    for name in "ab":  # the times of an agent do not go back
        times = sorted(piece.second for piece in pieces if piece.task == name)
        for piece, second in zip([piece for piece in pieces if piece.task == name], times, strict=True):
            piece.second = second
    return Printed(pieces, part_bytes=rng.choice([1, 3, 1000]))


def said(values: list[dict[str, Any]]) -> list[tuple[str, bytes]]:
    """The bytes of each stream, with its gaps as words: the cut of the pieces is nobody's business."""
    joined: dict[str, list[bytes]] = {}
    for value in values:
        stream = joined.setdefault(f"{value['task']} {value['stream']}", [])
        stream.append(b"<gap>" if value["kind"] == "gap" else bytes_of(value))
    return sorted((name, b"".join(parts)) for name, parts in joined.items())


def through_cuts(
    rng: random.Random, place: PiecePlace | LinePlace, printed: Printed, asked: dict[str, str]
) -> list[dict[str, Any]]:
    """What a reader gets whose connection breaks between any two lines of JSON, and at last does not.

    What is followed grows from one connection to the next, and is over with the last.
    """
    got: list[dict[str, Any]] = []
    count = 0
    for cuts_left in reversed(range(rng.randrange(1, 6))):
        count = (
            rng.randrange(count, len(printed.pieces) + 1) if cuts_left and "follow" in asked else len(printed.pieces)
        )
        stage = Printed(printed.pieces[:count], printed.part_bytes, is_over=not cuts_left)
        read = stage.lines if isinstance(place, LinePlace) else stage.numbered
        values = [] if place.is_done else read(asked | place.parameters())
        place.begin()
        for value in values[: rng.randrange(len(values) + 1) if cuts_left else None]:
            if (fresh := place.fresh(json.loads(json.dumps(value)))) is not None:
                got.append(fresh)
            if place.is_done:
                return got
    return got


@pytest.mark.parametrize("asked", [{}, {"follow": "1"}, {"order": "time"}])
def test_pieces_come_once_also_in_parts(asked: dict[str, str]) -> None:
    rng = random.Random(1)
    for _ in range(TRIALS):
        printed = printed_by(rng)
        got = through_cuts(rng, PiecePlace(is_by_time="order" in asked), printed, asked)
        assert said(got) == said(printed.numbered(asked))
        numbers = [one["number"] for one in got]
        assert numbers == sorted(numbers) or "order" in asked


@pytest.mark.parametrize("asked", [{}, {"follow": "1"}, {"order": "time"}, {"grep": "l"}, {"grep": "l", "follow": "1"}])
def test_lines_come_once_also_in_parts(asked: dict[str, str]) -> None:
    rng = random.Random(2)
    for _ in range(TRIALS):
        printed = printed_by(rng)
        got = through_cuts(rng, LinePlace(come_again="order" in asked), printed, asked)
        assert lines_of(got) == lines_of(printed.lines(asked))
        numbers = [one["line"] for one in got if one["kind"] == "line" and "is_open" not in one]
        assert numbers == sorted(numbers) or "order" in asked


def test_a_line_that_was_open_goes_on_where_it_was_left() -> None:
    place = LinePlace()
    line = {"kind": "line", "task": "a", "attempt": 1, "step": "1", "stream": "stdout"}
    came = [
        [line | {"line": 0, "text": "one"}, line | {"line": 1, "text": "ha", "is_open": True}],
        [line | {"line": 1, "text": "half", "is_cut": True}, line | {"line": 1, "text": " an"}],
        [line | {"line": 2, "text": "end", "is_open": True}],
        [line | {"line": 2, "text": "end"}],
    ]
    got = [fresh["text"] for values in came for fresh in taken(place, values)]
    assert got == ["one", "ha", "lf", " an", "end", ""]
    assert place.parameters()["offset"] == "3"


def test_of_an_open_line_that_has_not_grown_nothing_is_new() -> None:
    place = LinePlace()
    line = {"kind": "line", "task": "a", "attempt": 1, "step": "1", "stream": "stdout", "line": 0, "text": "x"}
    assert [fresh["text"] for fresh in taken(place, [line | {"is_open": True}])] == ["x"]
    assert list(taken(place, [line | {"is_open": True}])) == []


def test_the_last_lines_are_these_ones_once_the_first_has_come() -> None:
    place = LinePlace(-3)
    line = {"kind": "line", "task": "a", "attempt": 1, "step": "1", "stream": "stdout", "text": "x"}
    assert place.parameters()["offset"] == "-3"
    assert len(list(taken(place, [line | {"line": 7, "is_cut": True}]))) == 1
    assert place.parameters()["offset"] == "7"


def test_a_piece_that_is_cut_otherwise_after_a_break_comes_once() -> None:
    piece = {"kind": "output", "number": 4, "task": "a", "attempt": 1, "step": "1", "stream": "stdout"}
    place = PiecePlace()
    assert place.fresh(piece | {"offset": 10, "text": "abü"}) == piece | {"offset": 10, "text": "abü"}
    assert place.parameters() == {"offset": "4"}
    assert place.fresh(piece | {"offset": 10, "text": "abüdé"}) == piece | {"offset": 14, "text": "dé"}
    half = {"data": base64.b64encode("édé!".encode()).decode()}
    assert place.fresh(piece | {"offset": 16, "text": "é!"}) == piece | {"offset": 17, "data": "qSE="}
    assert place.fresh(piece | {"offset": 13} | half) is None
    gone = piece | {"kind": "gap", "number": 5, "offset": 19, "missing": None, "reason": "engine", "text": "away"}
    assert [place.fresh(gone), place.fresh(gone)] == [gone, None]


def test_as_many_lines_as_were_wanted_come_however_often_it_breaks() -> None:
    rng = random.Random(3)
    for _ in range(TRIALS):
        printed, limit = printed_by(rng), rng.randrange(1, 6)
        got = through_cuts(rng, LinePlace(0, limit), printed, {})
        expected = printed.lines({"limit": str(limit)})
        assert lines_of(only_lines(got)) == lines_of(only_lines(expected))  # a gap counts for none


@pytest.mark.parametrize(
    ("by", "asked"), [("byte", {}), ("line", {}), ("piece", {}), ("line", {"since": "2024-01-01T00:00:04"})]
)
def test_bytes_come_once_whatever_they_are_counted_by(by: str, asked: dict[str, str]) -> None:
    rng = random.Random(4)
    for _ in range(TRIALS):
        printed, offset = printed_by(rng), rng.randrange(6)
        limit = rng.choice([None, rng.randrange(1, 6)]) if by == "line" else None
        place = BytePlace(by, offset, lines_max=limit, must_repeat=bool(asked))
        got = b""
        expected = printed.bytes(asked | place.parameters())
        for cuts_left in reversed(range(rng.randrange(1, 6))):
            data = b"" if place.is_done else printed.bytes(asked | place.parameters())
            place.begin()
            for piece in in_pieces(rng, data[: rng.randrange(len(data) + 1) if cuts_left else None]):
                got += place.fresh(piece)
        assert got == expected


def in_pieces(rng: random.Random, data: bytes) -> Iterator[bytes]:
    while data:
        cut = rng.randrange(1, 9)
        yield data[:cut]
        data = data[cut:]


def taken(place: LinePlace, values: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    place.begin()
    return (fresh for value in values if (fresh := place.fresh(value)) is not None)


def only_lines(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [value for value in values if value["kind"] == "line"]


def lines_of(values: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The text of each stream, with the number of each line where that ends, and its gaps as words."""
    joined: dict[str, str] = {}
    for value in values:
        name = f"{value['task']} {value['stream']}"
        is_whole = value["kind"] == "line" and "is_open" not in value and "is_cut" not in value
        text = "<gap>" if value["kind"] == "gap" else value["text"] + (f"#{value['line']}\n" if is_whole else "")
        joined[name] = joined.get(name, "") + text
    return sorted(joined.items())
