"""The witness says when it began and that it still runs, and what is told of many of them is right."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.chaos import cutting, witness
from tests.chaos.group import until


async def test_a_witness_shows_when_it_started_and_until_when_it_ran(tmp_path: Path) -> None:
    before_s = witness.now_s()
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", witness.script(tmp_path, is_stubborn=True),
        env=os.environ | {"PISTAGE_FENCE": "7", "PISTAGE_AGENT": "a1"},
    )  # fmt: skip
    try:
        first = (await until(lambda: witness.seen(tmp_path), 10.0))[0]
        assert (first.fence, first.agent, first.pid) == (7, "a1", process.pid)
        assert before_s - 0.011 <= first.started_s <= first.last_s <= witness.now_s()
        process.terminate()
        await until(lambda: witness.seen(tmp_path)[0].last_s > first.last_s + 0.02, 10.0)
        assert first.is_alive, "a stubborn one does not heed the stop signal"
        witness.tell_to_end(tmp_path, 7)
        async with asyncio.timeout(10):
            assert await process.wait() == 0
        assert not first.is_alive
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_a_number_that_a_stranger_has_now_is_no_sign_of_life() -> None:
    assert not witness.Signs(fence=1, agent="a1", pid=os.getpid(), started_s=0.01, last_s=1.0).is_alive


@pytest.mark.parametrize(("new_s", "gap_s"), [(2.5, 1.5), (0.25, -0.75)])
def test_the_gap_is_from_the_old_ones_last_sign_to_the_new_ones_start(new_s: float, gap_s: float) -> None:
    assert cutting.Trial(kind="both ways", old_s=1.0, new_s=new_s).gap_s == gap_s


def test_the_table_sums_the_cuts_up_and_leaves_the_rest_apart() -> None:
    cuts = [cutting.Trial(kind=harm.about, old_s=1.0, new_s=2.0 + n) for n, harm in enumerate(cutting.CUTS)]
    lines = cutting.table([*cuts, cutting.Trial(kind="stopped", old_s=4.0, new_s=3.0, removed_s=0.5)], cuts=len(cuts))
    (total,) = [line.split() for line in lines if line.startswith("all of these cuts")]
    assert total[4:] == ["5", "1000/1000/1000", "2000/4000/6000", "1000/3000/5000", "-"]
    assert lines[-1].split() == ["stopped", "1", "4000/4000/4000", "3000/3000/3000", "-1000/-1000/-1000", "500/500/500"]
