from pathlib import Path

import pytest

from pistage.agent.journal import Journal
from pistage.core.commands import Accepted
from pistage.wire import Assign, new_id
from tests.agent.fake_master import script, task


def assignment() -> Assign:
    return Assign(
        attempt_id=new_id(), fence=3, run_id=new_id(), run_number=1, run_name="r", number=1, cluster_id=new_id(),
        task=task(script("true")),
    )  # fmt: skip


async def test_what_was_written_is_there_for_the_next_process(tmp_path: Path) -> None:
    assign = assignment()
    entry = await Journal(tmp_path).begin(assign)
    event = Accepted(at=1, attempt_id=assign.attempt_id, fence=3)
    await entry.add_event(event)
    await entry.write("exec:1", "nonce")
    entry.release()
    (found,) = Journal(tmp_path).load()
    assert (found.assign, found.events, found.read("exec:1")) == (assign, [event], "nonce")
    assert found.is_inherited and not entry.is_inherited
    assert list(found.notes("exec:")) == [("exec:1", "nonce")]
    found.release()


@pytest.mark.parametrize("cut", range(1, 40, 3))
async def test_a_torn_tail_costs_the_last_record_only(tmp_path: Path, cut: int) -> None:
    assign = assignment()
    entry = await Journal(tmp_path).begin(assign)
    await entry.write("first", 1)
    await entry.write("second", "x" * 40)
    entry.release()
    file = tmp_path / assign.attempt_id
    file.write_bytes(file.read_bytes()[:-cut])
    (found,) = Journal(tmp_path).load()
    assert (found.read("first"), found.read("second")) == (1, None)
    await found.write("third", 3)
    found.release()
    (again,) = Journal(tmp_path).load()
    assert again.read("third") == 3
    again.release()


async def test_a_file_without_a_whole_assignment_is_removed(tmp_path: Path) -> None:
    assign = assignment()
    (await Journal(tmp_path).begin(assign)).release()
    file = tmp_path / assign.attempt_id
    file.write_bytes(file.read_bytes()[:20])
    (tmp_path / "stray").write_text("not ours")
    assert Journal(tmp_path).load() == []
    assert list(tmp_path.iterdir()) == []


async def test_a_dropped_entry_leaves_nothing_and_takes_nothing_more(tmp_path: Path) -> None:
    entry = await Journal(tmp_path).begin(assignment())
    entry.drop()
    await entry.write("late", 1)
    assert list(tmp_path.iterdir()) == []


async def test_only_the_agents_user_can_read_it(tmp_path: Path) -> None:
    assign = assignment()
    (await Journal(tmp_path / "journal").begin(assign)).release()
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "journal" / assign.attempt_id).stat().st_mode & 0o777 == 0o600
