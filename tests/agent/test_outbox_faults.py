"""Output through an outbox while sessions break, masters refuse, fill up and are lost, and the agent is started again.

Whatever happens in whatever order: what is kept stands where it was printed, what is not is counted in a gap, and the
end of a stream that is too long is there.
"""

import math
import random
from collections import deque

import pytest

from pistage.agent.outbox import Outbox, StreamKey
from pistage.core import limits
from pistage.wire import GapReason, LogAck, LogFrame, LogGap, LogRefused
from tests.agent.fake_store import FakeStore, FakeStream

KEYS = [StreamKey("attempt", "1", 1), StreamKey("attempt", "1", 2), StreamKey("attempt", "2", 1)]
TAIL_BYTES = 40


class World:
    """An agent, the way to a master and back, and the store behind it; `printed` holds bytes, and None for a gap."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        step_max = self.chance.choice([60, 200, 1 << 30, 1 << 30])
        run_max = self.chance.choice([400, 3000, 1 << 30])
        self.store = FakeStore(step_bytes_max=step_max, run_bytes_max=run_max)
        self.is_limited = step_max < 1 << 30 or run_max < 1 << 30
        self.printed: dict[StreamKey, list[bytes | None]] = {key: [] for key in KEYS}
        self.brought = dict.fromkeys(KEYS, 0)  # how many of those to the outbox, since the agent was started
        self.up: deque[LogFrame | LogGap] = deque()
        self.down: deque[LogAck | LogRefused] = deque()
        self.has_lost = self.has_restarted = False
        self.faults = self.chance.choice([0.0, 0.02, 0.1])
        self.outbox = Outbox(wait_s=math.inf)
        for key in KEYS:
            self.outbox.open(key, is_new=True)

    def truth(self, key: StreamKey) -> bytes:
        return b"".join(part for part in self.printed[key] if part is not None)

    def gaps(self, key: StreamKey) -> list[int]:
        parts = self.printed[key]
        before = (parts[:number] for number, part in enumerate(parts) if part is None)
        return [sum(len(part) for part in some if part is not None) for some in before]

    async def step(self) -> None:
        actions = [self.print, self.print, self.send, self.send, self.hear, self.hear, self.answer, self.answer]
        action = self.chance.choice(actions)
        if self.chance.random() < self.faults:
            action = self.chance.choice([self.lose_session, self.lose_session, self.lose_master, self.restart])
        await action()

    async def print(self) -> None:
        key = self.chance.choice(KEYS)
        if self.brought[key] == len(self.printed[key]):
            is_gap = self.chance.random() < 0.05 and self.printed[key][-1:] != [None]
            self.printed[key].append(None if is_gap else self.chance.randbytes(self.chance.choice([1, 3, 10, 25])))
        await self.bring(key)

    async def bring(self, key: StreamKey) -> None:
        *before, part = self.printed[key][: self.brought[key] + 1]
        offset = sum(len(part) for part in before if part is not None)
        self.brought[key] += 1
        if part is None:
            self.outbox.note_gap(key, offset, GapReason.ENGINE)
        else:
            await self.outbox.put(key, offset, part)

    async def send(self) -> None:
        if (message := self.outbox._next_message(math.inf)) is not None:
            assert not isinstance(message, LogFrame) or len(message.data) <= limits.FRAME_BYTES_MAX
            self.up.append(message)

    async def hear(self) -> None:
        if not self.up:
            return
        message = self.up.popleft()
        if self.chance.random() < self.faults:
            refusal = LogRefused(
                attempt_id=message.attempt_id, step=message.step, stream=message.stream, reason="not now"
            )
            # At once, before what was taken is durable; or in its turn.
            self.chance.choice([self.down.appendleft, self.down.append])(refusal)
        else:
            self.down.append(self.store.append(message))

    async def answer(self) -> None:
        if self.down:
            match self.down.popleft():
                case LogAck() as ack:
                    self.outbox.on_ack(ack)
                case LogRefused() as refused:
                    self.outbox.on_refused(refused)

    async def lose_session(self) -> None:
        self.up.clear()
        self.down.clear()
        self.outbox.begin_session()

    async def lose_master(self) -> None:
        self.store.streams[self.chance.choice(KEYS)].lose(self.chance.choice([1, 3, 50]))
        self.has_lost = True
        await self.lose_session()

    async def restart(self) -> None:
        self.has_restarted = True
        self.up.clear()
        self.down.clear()
        self.outbox = Outbox(wait_s=math.inf)
        for key in KEYS:
            self.outbox.open(key, is_new=False)
            self.brought[key] = 0
            for _ in range(self.chance.randint(0, len(self.printed[key]))):
                await self.bring(key)
        if self.chance.random() < 0.5:
            self.outbox.begin_session()

    async def end(self) -> None:
        """The steps end, perhaps among more faults; in the end there are none."""
        for key in KEYS:
            while self.brought[key] < len(self.printed[key]):
                await self.bring(key)
            self.outbox.end(key)
        for _ in range(60):
            action = self.chance.choice([self.send, self.hear, self.answer])
            if self.chance.random() < self.faults:
                action = self.chance.choice([self.lose_session, self.lose_master])
            await action()
        self.faults = 0.0
        for _ in range(2000):
            for action in (self.send, self.hear, self.answer):
                await action()


def check_stream(world: World, key: StreamKey, stream: FakeStream) -> None:
    truth = world.truth(key)
    for offset, data in stream.pieces():
        assert truth[offset : offset + len(data)] == data
    if world.store.records * 64 > 2 * world.store.run_bytes_max:
        assert stream.end <= len(truth)
        return  # then not even gaps are taken
    assert stream.end == len(truth)
    assert world.outbox.kept_of(key) == (len(truth), sum(length for _, _, length in stream.gaps))
    reasons = {reason for reason, _, length in stream.gaps if length}
    assert reasons <= {GapReason.LIMIT, GapReason.LOST}
    assert world.has_lost or GapReason.LOST not in reasons
    assert world.is_limited or GapReason.LIMIT not in reasons
    told = [offset for reason, offset, _ in stream.gaps if reason is GapReason.ENGINE]
    assert set(told) <= set(world.gaps(key))
    if not world.has_lost:
        missing = [(offset, offset + length) for _, offset, length in stream.gaps if length]
        due = [at for at in world.gaps(key) if not any(start <= at <= end for start, end in missing)]
        assert set(due) <= set(told)
        full = {offset for reason, offset, _ in stream.gaps if reason is GapReason.LIMIT}
        assert all(told.count(at) == 1 for at in due if at not in full)
        if GapReason.LIMIT in reasons:
            check_tail(world, stream, truth)


def check_tail(world: World, stream: FakeStream, truth: bytes) -> None:
    limit_gaps = [(offset, length) for reason, offset, length in stream.gaps if reason is GapReason.LIMIT]
    assert limit_gaps[0][1] == 0, "the notice comes first"
    if not world.has_restarted:
        (begin, _), *_, (last, length) = limit_gaps
        assert len(truth) - last - length == min(TAIL_BYTES, len(truth) - begin - 1)


@pytest.mark.parametrize("seed", range(300))
async def test_what_is_kept_is_what_was_printed_and_the_rest_is_counted(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOG_TAIL_BYTES_MAX", TAIL_BYTES)
    monkeypatch.setattr(limits, "FRAME_BYTES_MAX", 25)
    world = World(seed)
    for _ in range(world.chance.choice([20, 200, 800])):
        await world.step()
    await world.end()
    for key in KEYS:
        await world.outbox.kept(key)  # would wait for ever otherwise
        check_stream(world, key, world.store.streams[key])
    assert world.outbox.held_bytes == 0
    world.outbox.drop(KEYS)
    assert world.outbox.held_bytes == 0
