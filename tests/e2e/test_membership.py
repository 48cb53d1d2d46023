"""Who is a master changes while work goes on: another leads, one leaves and comes back, more come in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.masters import a_group
from tests.e2e.processes import until

pytestmark = pytest.mark.slow


async def test_leadership_goes_where_it_is_sent_and_no_request_fails(tmp_path: Path) -> None:
    async with a_group(tmp_path) as (masters, ask), ask.steady_load():
        first = await ask.leader()
        second = next(name for name in masters.founders if name != first)
        code, _, said = await masters.cli("cluster", "transfer", masters.urls[second])
        assert code == 0, said
        assert masters.urls[second].encode() in said
        assert await ask.leader() == second
        code, _, said = await masters.cli("cluster", "transfer")
        assert code == 0, said
        assert await ask.leader() != second


async def test_a_master_that_is_taken_out_comes_back_as_a_new_one(tmp_path: Path) -> None:
    async with a_group(tmp_path) as (masters, ask):
        leader = await ask.leader()
        others = [name for name in masters.founders if name != leader]
        before = await ask.cluster(leader)
        assert before is not None
        async with ask.steady_load(*others):  # also while the leader itself is the one that goes
            for _ in range(2):  # the first answer may be lost: asked again, it is the same
                code, _, said = await masters.cli("cluster", "remove", before["node"])
                assert code == 0, said
            masters.stop(leader)
            code, told = await masters.offline("join", leader)
            assert code == 0, told
            masters.serve(leader)
            view = await ask.voting(3)
        assert before["node"] not in {master["id"] for master in view["masters"]}
        await ask.all_is_there()


async def test_what_cannot_be_is_refused_and_says_why(tmp_path: Path) -> None:
    async with a_group(tmp_path) as (masters, ask):
        leader = await ask.leader()
        silent, other = (name for name in masters.founders if name != leader)
        assert "another master has" in (await masters.offline("join", other))[1]
        assert "another master has" in (await masters.offline("recover", other, "--force-new"))[1]
        masters.stop(silent)
        for victim in (leader, other):  # one of the two that are left: the one that would remain decides nothing
            code, _, said = await masters.cli("cluster", "remove", masters.urls[victim])
            assert (code, b"too few of the others" in said) == (2, True), said
        code, told = await masters.offline("join", silent)
        assert (code, "which is whole, and a member of the group" in told) == (2, True), told
        code, told = await masters.offline("recover", silent, "--force-new")
        assert (code, "the group is alive" in told) == (2, True), told
        code, _, said = await masters.cli("cluster", "remove", "nobody")
        assert (code, b"no master 'nobody'" in said) == (5, True), said
        await ask.submit(5, leader, other)
        code, out, said = await masters.cli("cluster", "status", "-o", "json")
        picture = json.loads(out)
        assert (code, picture["voters"], picture["may_fail"]) == (0, 3, 0)
        assert [one["url"] for one in picture["masters"] if one["error"]] == [masters.urls[silent]]
        masters.kill(leader)
        await until(lambda: "leader=None" in masters.log_of(other)[-200:])
        code, out, said = await masters.cli("cluster", "status")
        assert (code, b"there is no leader; of 3 masters that vote 1 must come back" in said) == (0, True), said
        code, _, said = await masters.cli("cluster", "snapshot", "--stale", "what.is.left")
        assert code == 0, said
        assert (masters.directory / "what.is.left").stat().st_size > 0


async def test_a_fourth_and_a_fifth_come_in_and_old_settings_do_not_matter(tmp_path: Path) -> None:
    async with a_group(tmp_path) as (masters, ask):
        async with ask.steady_load(*masters.founders):
            for count in (4, 5):
                name = masters.add()
                code, said = await masters.offline("join", name)
                assert code == 0, said
                masters.serve(name)
                await ask.voting(count)
        await ask.all_is_there(5)
        # What they agreed on wins over what any of them is told when it starts again.
        name = masters.founders[0]
        masters.stop(name)
        masters.serve(name, "--bootstrap-expect", "3", peers="http://127.0.0.1:9,http://127.0.0.1:10")
        await ask.all_is_there(5)
        masters.kill(await ask.leader())
        masters.kill(await ask.leader())
        await ask.submit(5)
        code, out, said = await masters.cli("cluster", "status")
        assert code == 0, said
        assert b"of 5 masters that vote none may fail" in said
        assert out.count(b"leader") == 1
        assert out.count(b"no: ") == 2


async def test_a_wrong_url_takes_no_living_master_s_place(tmp_path: Path) -> None:
    async with a_group(tmp_path) as (masters, ask):
        name = masters.add()
        code, said = await masters.offline("join", name, "--advertise", masters.urls["m1"])
        assert code == 0, said
        masters.serve(name, "--advertise", masters.urls["m1"])
        await ask.submit(5, *masters.founders)
        await until(lambda: "is alive" in masters.log_of(name))
        masters.kill(name)
        await ask.all_is_there()
