"""Random output of a run that a fake agent prints, and what each way of reading it must give: by going through all."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pistage import wire
from pistage.core.plaintext import PlainBytes
from tests.master.fakes import Api, FakeAgent

TASKS = ("build", "check", "ship")
DOCUMENT = "name: Printer\nretry: 0\nuses:\n" + "".join(
    f"  {task}:\n    - {{image: busybox, run: echo}}\n    - {{image: busybox, run: echo}}\n" for task in TASKS
)
BEGIN = 1_790_000_000_000  # milliseconds UTC
REASONS = {"limit": wire.GapReason.LIMIT, "engine": wire.GapReason.ENGINE, "lost": wire.GapReason.LOST}
STREAMS = {1: "stdout", 2: "stderr"}

Wanted = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Frame:
    """What was printed, in the order in which it came; `missing` bytes of a gap are not there."""

    number: int
    task: str
    step: str
    stream: int
    offset: int
    at: int
    data: bytes = b""
    reason: str = ""
    missing: int = 0

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task, self.step, self.stream


@dataclass(frozen=True, slots=True)
class Told:
    """A line, or with `frame.reason` a gap. `count` newlines came before it ended, or broke off (`is_open`)."""

    count: int
    frame: Frame
    data: bytes = b""
    is_open: bool = False
    is_at_end: bool = False  # what has not ended yet

    @property
    def is_gap(self) -> bool:
        return bool(self.frame.reason)


def some_frames(
    chance: random.Random,
    count: int,
    *,
    pieces: Sequence[bytes] | None = None,
    reasons: Sequence[str] = ("limit", "lost"),
) -> list[Frame]:
    """Frames of several streams, lines cut anywhere, clocks that differ, and gaps."""
    known = [(task, step, stream) for task in TASKS for step in ("1", "2") for stream in (1, 2)]
    keys = chance.sample(known, chance.randint(1, 5))
    ends = dict.fromkeys(keys, 0)
    engine_gaps: set[tuple[str, str, int]] = set()
    skew = {key: chance.randint(-3000, 3000) for key in keys}
    frames: list[Frame] = []
    for number in range(count):
        key = chance.choice(keys)
        at = BEGIN + number * 100 + skew[key] + chance.randint(-50, 50)
        if chance.random() < 0.06:
            # The second of two that say the same of the same place is taken for a repeat.
            reason = chance.choice([*reasons] if key in engine_gaps else [*reasons, "engine"])
            engine_gaps.add(key)
            missing = 0 if reason == "engine" else chance.randint(1, 5000)
            frames.append(Frame(number, *key, ends[key], at, b"", reason, missing))
        else:
            data = b"".join(chance.choices(pieces or _PIECES, k=chance.randint(1, 6))) or b"."
            frames.append(Frame(number, *key, ends[key], at, data))
        ends[key] += len(frames[-1].data) + frames[-1].missing
    return frames


_PIECES = (
    b"\n", b"\n", b"\n\n", b"a line\n", b"needle", b" in the hay\n", b"caf\xc3\xa9", b"\xc3", b"\xa9", b"\xff\x00",
    b"\x1b[31mred\x1b[0m", b"\x1b]0;", b"title\x07", b"50%\r", b"x" * 300, b"{}[]\"\\", b"\xe2\x80\xae", b"\r\n",
)  # fmt: skip


async def print_all(agent: FakeAgent, assigns: dict[str, wire.Assign], frames: Sequence[Frame]) -> None:
    """Send them, and wait until they are safe."""
    for frame in frames:
        place = {
            "attempt_id": assigns[frame.task].attempt_id, "step": frame.step, "stream": frame.stream,
            "offset": frame.offset, "at": frame.at,
        }  # fmt: skip
        if frame.reason:
            await agent.send(wire.LogGap(**place, length=frame.missing, reason=REASONS[frame.reason]))
        else:
            await agent.send(wire.LogFrame(**place, data=frame.data))
    for _ in frames:
        while (ack := await agent.receive(wire.LogAck)).is_gap:
            raise AssertionError((ack, [kept for kept in agent._kept if not isinstance(kept, wire.LogAck)]))


@dataclass(frozen=True, slots=True)
class Run:
    """What it has printed, and what the agent was assigned, by task."""

    id: str
    frames: Sequence[Frame]
    assigns: dict[str, wire.Assign]


async def a_printed_run(api: Api, agent: FakeAgent, frames: Sequence[Frame]) -> Run:
    """A run with three tasks at work that has printed these."""
    run = await api.submit(DOCUMENT)
    assigns: dict[str, wire.Assign] = {}
    while len(assigns) < len(TASKS):
        assign = await agent.receive(wire.Assign)
        assigns[assign.task.name] = assign
        await agent.accept(assign)
    await print_all(agent, assigns, frames)
    return Run(run["id"], frames, assigns)


# --- what it must be --------------------------------------------------------------------------------------------------


def is_selected(frame: Frame, wanted: Wanted) -> bool:
    return (
        wanted.get("task") in {None, frame.task}
        and wanted.get("step") in {None, frame.step}
        and wanted.get("stream") in {None, STREAMS[frame.stream]}
    )


def is_in_time(frame: Frame, wanted: Wanted) -> bool:
    return bool(int(wanted.get("since", 0)) <= frame.at < int(wanted.get("until", 1 << 62)))


def pieces(frames: Sequence[Frame], wanted: Wanted) -> list[Frame]:
    """The pieces and gaps that are asked for, whole ones, from a number on."""
    found = [frame for frame in frames if is_selected(frame, wanted) and is_in_time(frame, wanted)]
    offset = int(wanted.get("offset", 0))
    found = [frame for frame in found if frame.number >= offset] if offset >= 0 else found[offset:]
    return (by_time(found) if "order" in wanted else found)[: _limit(wanted)]


def _limit(wanted: Wanted) -> int:
    return int(wanted.get("limit", 1 << 62))


def by_time(frames: Sequence[Frame]) -> list[Frame]:
    latest: dict[tuple[str, str, int], int] = {}
    timed = []
    for frame in frames:
        latest[frame.key] = max(frame.at, latest.get(frame.key, 0))
        timed.append((latest[frame.key], frame.number, frame))
    return [frame for *_, frame in sorted(timed, key=lambda one: one[:2])]


def raw(frames: Sequence[Frame], wanted: Wanted) -> bytes:
    """The bytes that are asked for, by bytes or by newlines."""
    selected = [frame for frame in frames if is_selected(frame, wanted)]
    timed = b"".join(frame.data for frame in selected if is_in_time(frame, wanted))
    offset = int(wanted.get("offset", 0))
    if wanted.get("by") == "line":
        ends = [0, *(at + 1 for at, byte in enumerate(timed) if byte == 10)]
        start = ends[min(offset, len(ends) - 1)] if offset < len(ends) else len(timed)
        stop = offset + _limit(wanted)
        return timed[start : ends[stop] if stop < len(ends) else len(timed)]
    if offset < 0:
        return timed[offset:][: _limit(wanted)]
    # What is before byte N is counted whenever it was printed.
    place, rest = 0, b""
    for frame in selected:
        fresh = frame.data[max(0, offset - place) :]
        rest += fresh if is_in_time(frame, wanted) else b""
        place += len(frame.data)
    return rest[: _limit(wanted)]


def lines(run: Run, wanted: Wanted, *, has_line: Callable[[bytes], bool] | None = None) -> list[Told]:
    """The lines and gaps that are asked for."""
    told = _all_lines(run, wanted)
    offset = int(wanted.get("offset", 0))
    shown = [one for one in told if is_in_time(one.frame, wanted)]
    if offset < 0:
        counted = [one for one in shown if not one.is_gap and (one.is_at_end or not one.is_open)]
        if -offset >= len(counted):
            offset = 0
        elif counted[offset].is_at_end:
            offset = counted[offset].count
        else:
            offset = counted[offset - 1].count + 1
    shown = [one for one in shown if one.count >= offset]
    if has_line is not None:
        shown = [one for one in shown if not one.is_gap and has_line(one.data)]
    left, limit = [], _limit(wanted)
    for one in shown:
        if not limit:
            break
        left.append(one)
        limit -= not one.is_gap
    return left


def _all_lines(run: Run, wanted: Wanted) -> list[Told]:
    told: list[Told] = []
    begun: dict[tuple[str, str, int], tuple[bytes, Frame]] = {}
    count = 0
    for frame in run.frames:
        if not is_selected(frame, wanted):
            continue
        if frame.reason:
            held = begun.pop(frame.key, None)
            if held is not None:
                told.append(Told(count, held[1], held[0], is_open=True))
            told.append(Told(count, frame))
            continue
        rest = begun.pop(frame.key, (b"", frame))[0] + frame.data
        *whole, rest = rest.split(b"\n")
        for line in whole:
            told.append(Told(count, frame, line))
            count += 1
        if rest:
            begun[frame.key] = (rest, frame)
    order = sorted(begun, key=lambda key: (run.assigns[key[0]].attempt_id, key[1], key[2]))
    for number, key in enumerate(order, count):
        data, last = begun[key]
        told.append(Told(number, last, data, is_open=True, is_at_end=True))
    return told


def text(told: Sequence[Told], stamp: Callable[[int], str]) -> str:
    """Lines and gaps as text for people, with their times."""
    shown = []
    for one in told:
        body = sentence(one.frame) if one.is_gap else PlainBytes().feed(one.data, is_last=True).removesuffix("\n")
        shown.append(f"{stamp(one.frame.at)} {body}\n")
    return "".join(shown)


def sentence(gap: Frame) -> str:
    match gap.reason:
        case "engine":
            said = "the engine was away while the command ran: what was printed then may be missing"
        case "lost":
            said = f"{gap.missing:,} bytes are lost: the masters that had them are gone"
        case _:
            said = f"{gap.missing:,} bytes were left out"
    return f"[{said}]"


def bytes_of(piece: dict[str, Any]) -> bytes:
    """What a piece in JSON holds."""
    return base64.b64decode(piece["data"]) if "data" in piece else piece["text"].encode()
