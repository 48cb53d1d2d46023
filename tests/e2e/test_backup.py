"""The state is kept elsewhere, and comes back: out of a snapshot, or out of the one master that is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.masters import Asking, Masters, a_group
from tests.e2e.processes import until

pytestmark = pytest.mark.slow


async def joins_all(masters: Masters, ask: Asking, names: list[str], voters: int) -> None:
    """Each of these joins the group of those who run, and votes in the end."""
    for name in names:
        code, said = await masters.offline("join", name, "--replace")
        assert code == 0, said
        masters.serve(name)
    await ask.voting(voters)


async def test_a_snapshot_taken_under_load_is_the_beginning_of_a_new_group(tmp_path: Path) -> None:
    async with a_group(tmp_path) as (masters, ask):
        await ask.submit(50)
        saved = set(ask.submitted)
        async with ask.steady_load():
            code, _, said = await masters.cli("cluster", "snapshot", "state.backup")
            assert code == 0, said
        before = await ask.cluster("m1")
        assert before is not None
        assert sorted(path.name for path in masters.directory.glob("*backup*")) == ["state.backup"]
        for name in masters.founders:
            masters.kill(name)
        ask.submitted = saved  # what came after the snapshot is not in it
        fresh = masters.add()
        code, told = await masters.offline("restore", fresh, "state.backup")
        assert code == 0, told
        masters.serve(fresh)
        after = await ask.settled(1)
        assert after["cluster_id"] == before["cluster_id"]
        assert after["group_id"] != before["group_id"]
        assert after["applied_index"] > before["applied_index"] + 10**9
        await ask.submit(10)
        await joins_all(masters, ask, masters.founders, 4)
        await ask.all_is_there(4)


async def test_the_one_that_is_left_goes_on_alone_and_the_old_group_cannot_talk_to_it(tmp_path: Path) -> None:
    async with a_group(tmp_path) as (masters, ask):
        await ask.submit(50)
        await ask.all_is_there()
        before = await ask.cluster("m1")
        assert before is not None
        for name in masters.founders:
            masters.kill(name)
        code, told = await masters.offline("recover", "m1")
        assert (code, "--force-new" in told) == (2, True), told
        code, told = await masters.offline("recover", "m1", "--force-new")
        assert code == 0, told
        masters.serve("m1")
        after = await ask.settled(1)
        assert (after["cluster_id"], after["group_id"] == before["group_id"]) == (before["cluster_id"], False)
        assert after["node"] not in {master["id"] for master in before["masters"]}
        await ask.submit(20, "m1")
        # Those that were thought lost come up again: not one of them gets through to the new group.
        masters.serve("m2")
        await until(lambda: "belongs to another group of masters" in masters.log_of("m2"))
        view = await ask.cluster("m1")
        assert view is not None
        assert len(view["masters"]) == 1
        code, told = await masters.offline("join", "m3")
        assert (code, "the peers are of different groups" in told) == (2, True), told
        masters.kill("m2")
        code, told = await masters.offline("join", "m3")
        assert (code, "of another group of masters" in told) == (2, True), told
        await joins_all(masters, ask, ["m2", "m3"], 3)
        await ask.all_is_there()
