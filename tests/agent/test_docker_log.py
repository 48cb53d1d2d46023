"""A container's log under an engine that comes and goes: what is known is brought, once, and each absence is a gap."""

import itertools
import math
import random
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from pistage.agent.attempt.output import StepOutput
from pistage.agent.masking import Masks
from pistage.agent.outbox import Outbox
from pistage.agent.runtimes.base import STDERR, STDOUT, ExecutionError
from pistage.agent.runtimes.docker_log import ContainerLog, Heard
from pistage.agent.runtimes.engine import Engine, EngineGoneError
from pistage.agent.runtimes.loglines import time_of
from pistage.wire import GapReason
from tests.agent.fake_store import FakeStore

SECOND = 1_000_000_000


def stamped(at_ns: int, text: bytes, zone: str = "Z") -> bytes:
    seconds = datetime.fromtimestamp(at_ns // SECOND, UTC)
    if zone != "Z":
        seconds += timedelta(hours=int(zone[:3]))
    return f"{seconds:%Y-%m-%dT%H:%M:%S}.{at_ns % SECOND:09}{zone} ".encode() + text


class FakeEngine:
    """Has the messages of a log; reading it breaks off after so many of them, if it is to."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, bytes]] = []
        self.breaks_after = math.inf
        self.ends_after = math.inf  # too early, and without a word
        self.ahead_ns = 0

    def write(self, stream: int, at_ns: int, text: bytes) -> None:
        self.messages.append((stream, stamped(at_ns + self.ahead_ns, text)))

    async def clock_ahead_ns(self) -> int:
        return self.ahead_ns

    async def logs(self, container: str, *, is_following: bool, tail: int = 0) -> AsyncIterator[tuple[int, bytes]]:
        for number, message in enumerate(self.messages[-tail:]):
            if is_following and number >= self.breaks_after:
                raise EngineGoneError("it broke off")
            if is_following and number >= self.ends_after:
                return
            yield message
        if is_following and self.breaks_after < math.inf:
            raise EngineGoneError("it broke off")


class Notes:
    def __init__(self) -> None:
        self.notes: dict[str, Any] = {}
        self.is_inherited = self.is_of_this_boot = True

    def read(self, key: str) -> Any:
        return self.notes.get(key)

    def notes_of(self, prefix: str) -> Iterator[tuple[str, Any]]:
        return iter(self.notes.items())

    def write(self, key: str, note: Any) -> None:
        self.notes[key] = note


class Agent:
    """Reads one log into a store; `again` is the next agent."""

    def __init__(self, engine: FakeEngine, notes: Notes, store: FakeStore, *, is_new: bool) -> None:
        self.engine, self.notes, self.store = engine, notes, store
        self.outbox = Outbox(wait_s=5)
        self.output = StepOutput(self.outbox, "attempt", "1", is_new=is_new, masks=Masks(()))
        self.output.begin_part()
        self.log = ContainerLog(
            cast(Engine, engine), "c", cast(Any, notes), "1", loses_newlines=False, outlives_engine=False
        )

    def again(self) -> "Agent":
        return Agent(self.engine, self.notes, self.store, is_new=False)

    async def attached(self, stream: int, data: bytes, heard: dict[int, Heard]) -> None:
        await self.output.write(stream, heard[stream].length, data)
        heard[stream].add(data)

    async def tell(self) -> bool:
        """Whether the log was read to its end."""
        try:
            await self.log.tell(self.output)
            await self.log.complete(self.output)
        except EngineGoneError:
            return False
        finally:
            self.carry()
        return True

    def carry(self) -> None:
        while (message := self.outbox._next_message(math.inf)) is not None:
            self.outbox.on_ack(self.store.append(message))


class World:
    """A container prints, engines read it and write it down, and lose what they have not when they end."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.engine = FakeEngine()
        self.at_ns = 1_790_000_000 * SECOND + chance.randrange(SECOND)
        self.agent = Agent(self.engine, Notes(), FakeStore(), is_new=True)
        self.letters = itertools.cycle(bytes(range(1, 255)))
        #: What is known of each stream: what one engine after the other brought.
        self.known: dict[int, list[bytes]] = {STDOUT: [], STDERR: []}

    def text(self, length: int) -> bytes:
        return bytes(next(self.letters) for _ in range(length))

    def live(self, *, is_first: bool) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """One engine's life: of what it read, what it wrote down, and what an attached client could hear."""
        written, heard = {}, {}
        for stream in (STDOUT, STDERR):
            read = self.text(self.chance.choice([0, 0, 5, 40]))
            end = self.chance.choice([len(read), len(read), self.chance.randint(0, len(read))])
            written[stream] = read[:end]
            heard[stream] = read[: self.chance.randint(0, len(read))] if is_first else b""
            self.known[stream].append(max(written[stream], heard[stream], key=len))
        pieces = [(s, written[s][at : at + 7]) for s in written for at in range(0, len(written[s]), 7)]
        self.chance.shuffle(pieces)
        pieces.sort(key=lambda piece: written[piece[0]].index(piece[1]))
        for stream, piece in pieces:
            self.at_ns += self.chance.choice([1, 1000, SECOND])
            self.engine.write(stream, self.at_ns, piece)
        return written, heard

    async def hear(self, heard: dict[int, bytes]) -> dict[int, Heard]:
        told = {STDOUT: Heard(), STDERR: Heard()}
        for stream, data in heard.items():
            for at in range(0, len(data), 3):
                await self.agent.attached(stream, data[at : at + 3], told)
        return told

    def expected(self, stream: int) -> tuple[bytes, list[tuple[GapReason, int, int]]]:
        ends = list(itertools.accumulate(len(part) for part in self.known[stream]))
        places = dict.fromkeys(ends[:-1])  # gaps with nothing between them are one
        return b"".join(self.known[stream]), [(GapReason.ENGINE, at, 0) for at in places]


@pytest.mark.parametrize("seed", range(200))
async def test_what_engines_wrote_down_or_let_hear_is_known_and_the_rest_is_a_gap(seed: int) -> None:
    chance = random.Random(seed)
    world = World(chance)
    _, heard_bytes = world.live(is_first=True)
    heard = await world.hear(heard_bytes)
    if chance.random() < 0.5:
        world.agent.carry()
    for _ in range(chance.randint(0, 4)):
        world.at_ns += SECOND
        world.agent.log.note_absence(world.at_ns, heard)
        heard = {}
        world.at_ns += chance.choice([1, SECOND])
        if chance.random() < 0.4:
            world.agent = world.agent.again()  # it ended while the engine was away
        world.live(is_first=False)
        world.engine.breaks_after = chance.randint(0, len(world.engine.messages))
        assert not await world.agent.tell()
        if chance.random() < 0.3:
            world.agent = world.agent.again()
    world.engine.breaks_after = math.inf
    world.engine.ends_after = chance.choice([math.inf, 0, 3, 8])
    if len(world.known[STDOUT]) == 1:
        world.agent.log.note_absence(world.at_ns + 1, heard)
        for stream in world.known:
            world.known[stream].append(b"")
    assert await world.agent.tell()
    assert await world.agent.tell(), "once more brings nothing more"
    for stream in (STDOUT, STDERR):
        kept = world.agent.store.streams["attempt", "1", stream]
        known, gaps = world.expected(stream)
        assert kept.kept == known
        assert kept.gaps == gaps


async def test_bytes_after_an_absence_are_not_taken_for_those_before_it() -> None:
    """A line that was not complete stands in no log: what was heard of it is longer than what is written."""
    world = World(random.Random(1))
    heard = await world.hear({STDOUT: b"one, two, three, "})
    world.agent.log.note_absence(world.at_ns, heard)
    world.engine.write(STDOUT, world.at_ns + SECOND, b"five, six\n")
    for agent in (world.agent, world.agent.again()):
        assert await agent.tell()
        kept = agent.store.streams["attempt", "1", STDOUT]
        assert kept.kept == b"one, two, three, five, six\n"
        assert kept.gaps == [(GapReason.ENGINE, 17, 0)]
        assert agent.output.length_of(STDOUT) == 27


@pytest.mark.parametrize("ahead_s", [-7200, -3, 3, 7200])
async def test_an_engine_may_have_another_clock(ahead_s: int) -> None:
    world = World(random.Random(1))
    world.engine.ahead_ns = ahead_s * SECOND
    world.engine.write(STDOUT, world.at_ns, b"before\n")
    world.agent.log.note_absence(world.at_ns + SECOND, {})
    world.engine.write(STDOUT, world.at_ns + 2 * SECOND, b"after\n")
    assert await world.agent.tell()
    kept = world.agent.store.streams["attempt", "1", STDOUT]
    assert (kept.kept, kept.gaps) == (b"before\nafter\n", [(GapReason.ENGINE, 7, 0)])


async def test_a_stream_that_stays_silent_has_its_gap_while_the_other_runs_on() -> None:
    world = World(random.Random(1))
    world.engine.write(STDERR, world.at_ns, b"a warning\n")
    world.agent.log.note_absence(world.at_ns + 1, {})
    world.engine.breaks_after = 1
    assert not await world.agent.tell()  # it has not ended yet
    assert world.agent.store.streams["attempt", "1", STDOUT].gaps == [(GapReason.ENGINE, 0, 0)]
    assert world.agent.store.streams["attempt", "1", STDERR].gaps == [(GapReason.ENGINE, 10, 0)]


async def test_a_log_that_others_write_has_no_gaps() -> None:
    world = World(random.Random(1))
    world.agent.log.outlives_engine = True
    heard = await world.hear({STDOUT: b"one"})
    world.engine.write(STDOUT, world.at_ns, b"one, ")
    world.agent.log.note_absence(world.at_ns + 1, heard)
    world.engine.write(STDOUT, world.at_ns + 2, b"two\n")
    assert await world.agent.tell()
    kept = world.agent.store.streams["attempt", "1", STDOUT]
    assert (kept.kept, kept.gaps) == (b"one, two\n", [])


async def test_what_was_heard_and_is_nowhere_any_more_is_said_to_be_lost() -> None:
    world = World(random.Random(1))
    heard = await world.hear({STDOUT: b"x" * 200_000})
    world.agent.log.note_absence(world.at_ns, heard)
    world.engine.write(STDOUT, world.at_ns + SECOND, b"more\n")
    assert await world.agent.tell()
    with pytest.raises(ExecutionError, match="the engine lost 200000 bytes"):
        await world.agent.again().tell()


def test_of_what_is_heard_only_the_end_is_remembered() -> None:
    heard = Heard()
    text = random.Random(3).randbytes(300_000)
    for at in range(0, len(text), 1_000):
        heard.add(text[at : at + 1_000])
    assert heard.length == 300_000
    assert heard.tail == text[-65_536:]
    assert heard._held < 67_000


@pytest.mark.parametrize("zone", ["Z", "+09:00", "-03:00"])
def test_times_are_read_in_the_time_zone_of_the_engine(zone: str) -> None:
    at_ns = 1_790_000_000_123_456_789
    assert time_of(stamped(at_ns, b"text with spaces\n", zone)) == at_ns
