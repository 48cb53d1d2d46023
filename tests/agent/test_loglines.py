import pytest

from pistage.agent.runtimes.loglines import LineMender

CUT = 16 * 1024


def stored(text: bytes, *, loses_newlines: bool) -> list[bytes]:
    """The messages in which an engine's `local` driver stores `text`."""
    messages = []
    lines = text.split(b"\n")
    for number, line in enumerate(lines):
        is_ended = number < len(lines) - 1
        at = b"2026-11-21T21:14:05.%09dZ " % number
        pieces = [line[start : start + CUT] for start in range(0, len(line), CUT)] if line else []
        is_cut = len(line) >= CUT
        if is_ended and not is_cut:
            pieces = [line + b"\n"]
        elif is_ended and not loses_newlines:
            pieces = [*pieces[:-1], pieces[-1] + b"\n"] if len(line) % CUT else [*pieces, b"\n"]
        messages += [at + piece for piece in pieces]
    return messages


@pytest.mark.parametrize("loses_newlines", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        b"", b"a", b"a\n", b"\n\n\n", b"a\r\nb\n", b"\0\xff\xfe\n", b"x" * CUT, b"x" * (CUT - 1) + b"\n",
        b"x" * CUT + b"\n", b"x" * CUT + b"\n\n\n", b"x" * CUT * 2 + b"\nz\n", b"x" * (CUT + 1) + b"\nz",
        b"x" * CUT + b"\n" + b"y" * CUT + b"\n", b"x" * 100_000 + b"\n" + b"y" * 100_000 + b"\nz\n",
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)  # fmt: skip
def test_lines_are_put_together_as_they_were(text: bytes, loses_newlines: bool) -> None:
    mender = LineMender(loses_newlines=loses_newlines)
    got = b"".join(mender.feed(message) for message in stored(text, loses_newlines=loses_newlines))
    got += mender.finish()
    # The one thing that such an engine does not tell: whether a long last line had a newline.
    ends_long = len(text.rpartition(b"\n")[2]) >= CUT
    assert got == (text + b"\n" if loses_newlines and ends_long else text)
