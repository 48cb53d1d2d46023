"""Programs that print known bytes: shell scripts for any runtime, and what each of their streams must then hold.

The scripts need no more than busybox has. No two places of what they print look alike, so that a piece that is lost,
doubled or out of its place changes the SHA-256 whatever its length; empty lines, which are all alike, are counted.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

Parts = Callable[[], Iterable[bytes]]
WITNESS: Final = "witness"  # a file in the directory in which a step runs


@dataclass(frozen=True, slots=True)
class Sum:
    """How much a stream holds, and its SHA-256."""

    length: int
    sha256: str


@lru_cache(maxsize=64)
def printed_by(program: Program, stream: str) -> Sum:
    """What a stream of it must hold."""
    return sum_of(program.parts(stream))


def sum_of(parts: Iterable[bytes]) -> Sum:
    length, digest = 0, hashlib.sha256()
    for part in parts:
        length += len(part)
        digest.update(part)
    return Sum(length, digest.hexdigest())


def _nothing() -> Iterable[bytes]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A script, and what it prints. One that `stays` has printed all of it, and goes on until it is killed."""

    title: str
    script: str
    stdout: Parts = _nothing
    stderr: Parts = _nothing
    stays: bool = False

    def parts(self, stream: str) -> Iterable[bytes]:
        return {"stdout": self.stdout, "stderr": self.stderr}[stream]()

    def own(self, **more: Any) -> dict[str, Any]:
        """A definition in which it is its container's own process."""
        return {"name": self.title, "image": "busybox", "retry": 0, "run": self.script} | more

    def shared(self, **more: Any) -> dict[str, Any]:
        """A definition in which it is the second step of a container that steps share."""
        steps = [{"run": "true", "image": "busybox"}, {"run": self.script} | more]
        return {"name": self.title, "retry": 0, "uses": {"main": steps}}


# --- text ------------------------------------------------------------------------------------------------------------

_LINE_BYTES: Final = 100
_FILLER: Final = "x" * (_LINE_BYTES - 12)


def text(size: int) -> Program:
    """Numbered lines of 100 bytes, `size` bytes in all."""
    count = size // _LINE_BYTES
    return Program(title="Text", script=_numbering(count, "\\n"), stdout=lambda: _numbered(count, b"\n"))


def one_line(size: int) -> Program:
    """Numbered words of 100 bytes in one line, which is `size` bytes long and has no newline at its end."""
    count = size // _LINE_BYTES
    return Program(title="One line", script=_numbering(count, " "), stdout=lambda: _numbered(count, b" "))


def _numbering(count: int, end: str) -> str:
    return f"""awk 'BEGIN {{ for (i = 0; i < {count}; i++) printf "%010d {_FILLER}{end}", i }}'"""


def _numbered(count: int, end: bytes) -> Iterator[bytes]:
    pattern = b"%010d " + _FILLER.encode() + end
    for start in range(0, count, 10_000):
        yield b"".join([pattern % number for number in range(start, min(count, start + 10_000))])


def empty_lines(count: int) -> Program:
    return Program(
        title="Empty lines", script=f"yes '' | head -n {count}", stdout=lambda: (b"\n" * count,)
    )  # fmt: skip


def both(count: int) -> Program:
    """A line on one stream, then one on the other, so many of each."""
    script = f'i=0; while [ $i -lt {count} ]; do i=$((i+1)); echo "out $i"; echo "err $i" >&2; done'
    return Program(
        title="Both",
        script=script,
        stdout=lambda: _lines(count, b"out %d\n"),
        stderr=lambda: _lines(count, b"err %d\n"),
    )


def _lines(count: int, pattern: bytes) -> Iterator[bytes]:
    return (pattern % number for number in range(1, count + 1))


def nothing() -> Program:
    return Program(title="Nothing", script="true")


# --- bytes of every kind ---------------------------------------------------------------------------------------------

_BLOCK: Final = random.Random(5).randbytes(24 * 1024)
_SHEET_BLOCKS: Final = 32
_SHEET: Final = b"".join(_BLOCK[start:] for start in range(_SHEET_BLOCKS))
_MAKE_BLOCK: Final = f"""d=$(mktemp -d); echo {base64.b64encode(_BLOCK).decode()} | base64 -d >"$d/block"\n"""


def _tails(count: int, file: str) -> str:
    return f"""i=0; while [ $i -lt {count} ]; do i=$((i+1)); tail -c +$i "$d/{file}"; done"""


_MAKE_SHEET: Final = f"""{_MAKE_BLOCK}{_tails(_SHEET_BLOCKS, "block")} >"$d/sheet"\n"""


def noise(size: int) -> Program:
    """Random bytes, at least `size` of them: one sheet again and again, each time without one byte more at its head."""
    count = -(-size // len(_SHEET)) + 1
    return Program(
        title="Noise",
        script=f"""{_MAKE_SHEET}{_tails(count, "sheet")}\nrm -r "$d\"""",
        stdout=lambda: (_SHEET[start:] for start in range(count)),
    )


def last_words() -> Program:
    """Random bytes on both streams in the last moment before it exits, less than a pipe holds."""
    return Program(
        title="Last words",
        script=f"""{_MAKE_BLOCK}sleep 0.2; cat "$d/block" >&2; exec cat "$d/block\"""",
        stdout=lambda: (_BLOCK,),
        stderr=lambda: (_BLOCK,),
    )


def until_killed() -> Program:
    """Text and random bytes on both streams, and then a word in the witness; it does not heed that it should stop."""
    count = 2_000
    first = _numbering(count, "\\n")
    return Program(
        title="Until killed",
        script=f"""trap '' TERM; {_MAKE_BLOCK}{first}
cat "$d/block" >&2; cat "$d/block"; mkfifo "$d/never"; echo printed >{WITNESS}; read -r word <>"$d/never\"""",
        stdout=lambda: (*_numbered(count, b"\n"), _BLOCK),
        stderr=lambda: (_BLOCK,),
        stays=True,
    )


#: Each line is printed first, and then noted in the witness.
ENDLESS: Final = f'i=0; while :; do i=$((i+1)); echo "line $i"; echo "$i" >>{WITNESS}; done'


def endless_lines(count: int) -> bytes:
    return b"".join(_lines(count, b"line %d\n"))


def at_length(bursts: int) -> Program:
    """A burst on each stream every tenth of a second: random bytes and a line that says which, 480 KB a second."""
    script = f"""{_MAKE_BLOCK}i=0; while [ $i -lt {bursts} ]; do i=$((i+1))
tail -c +$i "$d/block"; echo "burst $i"; tail -c +$((i+i)) "$d/block" >&2; echo "burst $i" >&2; sleep 0.1; done"""
    return Program(
        title="At length",
        script=script,
        stdout=lambda: _bursts(_BLOCK, bursts, 1),
        stderr=lambda: _bursts(_BLOCK, bursts, 2),
    )


def flood(bursts: int) -> Program:
    """The same on standard output alone, in half as many bursts, of 780 KB each."""
    script = f"""{_MAKE_SHEET}i=0; while [ $i -lt {bursts // 2} ]; do i=$((i+1))
tail -c +$i "$d/sheet"; echo "burst $i"; sleep 0.2; done"""
    return Program(title="Flood", script=script, stdout=lambda: _bursts(_SHEET, bursts // 2, 1))


def _bursts(source: bytes, bursts: int, stride: int) -> Iterator[bytes]:
    for number in range(1, bursts + 1):
        yield source[number * stride - 1 :] + b"burst %d\n" % number
