"""The fake store answers as the real one does, whatever it is sent."""

import random
from pathlib import Path

import pytest

from pistage import wire
from pistage.core import limits
from pistage.master.logwriter import Appended, Bounds, LogWriter, Placed
from pistage.wire import GapReason, LogFrame, LogGap
from tests.agent.fake_store import FakeStore


@pytest.mark.parametrize("seed", range(10))
def test_the_fake_store_answers_as_the_real_one(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOG_TAIL_BYTES_MAX", 60)
    chance = random.Random(seed)
    run_max, step_max = chance.choice([(10_000, 300), (3_000, 10_000), (10_000, 10_000), (500, 100)])
    real = LogWriter(tmp_path, Bounds(run_bytes_max=run_max, step_bytes_max=step_max, free_bytes_min=0))
    fake = FakeStore(run_bytes_max=run_max, step_bytes_max=step_max)
    run_id, attempt_id = wire.new_id(), wire.new_id()
    try:
        for _ in range(80):
            step, stream = chance.choice("12"), chance.choice([1, 2])
            end = fake.streams[attempt_id, step, stream].end
            where = {"attempt_id": attempt_id, "step": step, "stream": stream, "at": 5}
            offset = max(0, end + chance.choice([0, 0, 0, -1, -7, -40, 3]))
            frame: LogFrame | LogGap
            if chance.random() < 0.7:
                frame = LogFrame(offset=offset, data=chance.randbytes(chance.choice([0, 1, 8, 30])), **where)  # type: ignore[arg-type]
            else:
                length, reason = chance.choice([0, 0, 5, 30]), chance.choice(list(GapReason))
                frame = LogGap(offset=offset, length=length, reason=reason, **where)  # type: ignore[arg-type]
            (told,) = real.write([Placed(run_id, frame, 0)])
            ack = fake.append(frame)
            assert told == Appended(ack.length, ack.missing, is_gap=ack.is_gap, is_full=ack.is_full), frame
    finally:
        real.close()
