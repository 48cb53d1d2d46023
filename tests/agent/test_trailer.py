import random

import pytest

from pistage.agent.runtimes.trailer import TrailerScanner

NONCE = "0123456789abcdef"
MARK = b"\x01" + NONCE.encode() + b":"


@pytest.mark.parametrize("seed", range(200))
def test_output_passes_unchanged_however_it_is_cut(seed: int) -> None:
    rng = random.Random(seed)
    # Text that is full of the beginnings of marks.
    pieces = [MARK[: rng.randint(1, len(MARK) - 1)], b"\x01", b"line\n", rng.randbytes(rng.randint(0, 30))]
    text = b"".join(rng.choice(pieces) for _ in range(rng.randint(0, 40)))
    whole = text + MARK + b"%d\n" % rng.randint(0, 255) + b"noise of a process left behind"
    scanner = TrailerScanner(NONCE)
    out = b""
    while whole:
        size = rng.randint(1, 20)
        out += scanner.feed(whole[:size])
        whole = whole[size:]
    assert out == text
    assert scanner.code is not None


def test_ordinary_output_is_not_held_back() -> None:
    assert TrailerScanner(NONCE).feed(b"a prompt without a newline: ") == b"a prompt without a newline: "


def test_the_trailer_of_another_command_is_output() -> None:
    scanner = TrailerScanner(NONCE)
    assert scanner.feed(b"\x01fedcba9876543210:0\n") == b"\x01fedcba9876543210:0\n"
    assert scanner.code is None
