import asyncio
import os
from pathlib import Path

import pytest

from pistage.agent import journal as journal_module
from pistage.agent.journal import Entry, Journal, JournalError
from pistage.core.commands import Accepted, Finished
from pistage.core.model import Result, State
from pistage.wire import Assign
from tests.agent.fake_master import an_assign, script, task


def assignment() -> Assign:
    return an_assign(task(script("true")))


def read_again(directory: Path) -> list[Entry]:
    journal = Journal(directory)
    journal.close()
    return journal.load()


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.journal"))


async def test_what_was_written_is_there_for_the_next_process_even_one_that_is_killed(tmp_path: Path) -> None:
    journal, assign = Journal(tmp_path), assignment()
    entry = await journal.begin(assign)
    event = Accepted(at=1, attempt_id=assign.attempt_id, fence=3)
    entry.add_event(event)
    entry.write("exec:1", "nonce")
    (found,) = read_again(tmp_path)  # nothing was flushed or closed
    assert (found.assign, found.events, found.read("exec:1")) == (assign, [event], "nonce")
    assert found.is_inherited and not entry.is_inherited
    assert found.is_of_this_boot and not found.is_over
    assert list(found.notes("exec:")) == [("exec:1", "nonce")]
    entry.add_event(
        Finished(at=1, attempt_id=assign.attempt_id, fence=3, result=Result(state=State.SUCCEEDED, exit_code=0))
    )
    (found,) = read_again(tmp_path)
    assert found.is_over
    journal.close()


@pytest.mark.parametrize("cut", range(1, 60, 5))
async def test_a_torn_tail_costs_the_last_record_only(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path)
    entry = await journal.begin(assignment())
    entry.write("first", 1)
    entry.write("second", "x" * 40)
    journal.close()
    (file,) = segments(tmp_path)
    file.write_bytes(file.read_bytes()[:-cut])
    journal = Journal(tmp_path)
    (found,) = journal.load()
    assert (found.read("first"), found.read("second")) == (1, None)
    found.write("third", 3)
    journal.close()
    (again,) = read_again(tmp_path)
    assert again.read("third") == 3


async def test_half_an_assignment_is_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    await journal.begin(assignment())
    journal.close()
    (file,) = segments(tmp_path)
    file.write_bytes(file.read_bytes()[:20])
    assert read_again(tmp_path) == []
    assert file.read_bytes() == b""


async def test_an_attempt_of_another_boot_is_known_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    entry = await journal.begin(assignment())
    monkeypatch.setattr(journal_module, "boot_id", lambda: "another")
    assert not entry.is_of_this_boot
    assert not read_again(tmp_path)[0].is_of_this_boot
    journal.close()


async def test_a_dropped_entry_leaves_nothing_and_takes_nothing_more(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    first, second = await journal.begin(assignment()), await journal.begin(assignment())
    first.drop()
    first.drop()
    first.write("late", 1)
    await first.flush()
    assert [entry.attempt_id for entry in read_again(tmp_path)] == [second.attempt_id]
    second.drop()
    assert [file.read_bytes() for file in segments(tmp_path)] == [b""]
    journal.close()


async def test_those_that_come_together_share_a_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = 0
    fdatasync = os.fdatasync

    def counted(descriptor: int) -> None:
        nonlocal flushes
        flushes += 1
        fdatasync(descriptor)

    journal = Journal(tmp_path)
    monkeypatch.setattr(os, "fdatasync", counted)
    entries = await asyncio.gather(*(journal.begin(assignment()) for _ in range(50)))
    assert len(read_again(tmp_path)) == len(entries) == 50
    assert flushes <= 3
    journal.close()


async def test_it_moves_before_it_grows_too_large_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_SEGMENT_BYTES_MAX", 5000)
    journal = Journal(tmp_path)
    lasting = await journal.begin(assignment())
    lasting.write("exec:1", "nonce")
    for number in range(100):
        passing = await journal.begin(assignment())
        lasting.write("number", number)
        passing.drop()
        assert sum(file.stat().st_size for file in segments(tmp_path)) < 12_000
    assert len(segments(tmp_path)) == 1
    (found,) = read_again(tmp_path)
    assert (found.assign, found.read("exec:1"), found.read("number")) == (lasting.assign, "nonce", 99)
    journal.close()


async def test_a_move_that_was_cut_short_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_SEGMENT_BYTES_MAX", 1)
    monkeypatch.setattr(Journal, "flush", lambda journal: asyncio.sleep(0))
    journal = Journal(tmp_path)
    first = await journal.begin(assignment())
    first.write("exec:1", "nonce")
    second = await journal.begin(assignment())
    assert len(segments(tmp_path)) == 2
    journal.close()
    newest = segments(tmp_path)[-1]
    whole = newest.read_bytes()
    for length in range(0, len(whole), 97):
        newest.write_bytes(whole[:length])
        found = {entry.attempt_id: entry for entry in read_again(tmp_path)}
        assert found[first.attempt_id].read("exec:1") == "nonce"
    newest.write_bytes(whole)
    assert {entry.attempt_id for entry in read_again(tmp_path)} == {first.attempt_id, second.attempt_id}


async def test_a_move_for_which_there_is_no_space_takes_nothing_back_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    first, second = await journal.begin(assignment()), await journal.begin(assignment())
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(journal_module, "_SEGMENT_BYTES_MAX", 1)
        room = iter([True])

        def full(descriptor: int, text: bytes) -> int:
            if not next(room, False):
                raise OSError(28, "No space left on device")
            return write(descriptor, text)

        def held(file: Path, missing_ok: bool = False) -> None:
            if file.exists():
                raise OSError(5, "Input/output error")

        patched.setattr(os, "write", full)
        patched.setattr(Path, "unlink", held)  # not even the half that was written can be taken away
        with pytest.raises(JournalError, match="No space"):
            await journal.begin(assignment())
    first.add_event(
        Finished(at=1, attempt_id=first.attempt_id, fence=3, result=Result(state=State.SUCCEEDED, exit_code=0))
    )
    await first.flush()
    found = {entry.attempt_id: entry.is_over for entry in read_again(tmp_path)}
    assert found == {first.attempt_id: True, second.attempt_id: False}
    assert len(list(tmp_path.iterdir())) == 1
    journal.close()


def failing(descriptor: int) -> None:
    raise OSError(5, "Input/output error")


async def test_a_file_under_which_the_disk_failed_once_is_not_believed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    lasting = await journal.begin(assignment())
    fails = iter([True])
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: failing(fd) if next(fails, False) else fdatasync(fd))
    lasting.write("exec:1", "nonce")
    _, other = await asyncio.gather(lasting.flush(), journal.begin(assignment()))
    assert [int(file.stem) for file in segments(tmp_path)] == [2]
    found = {entry.attempt_id: entry.read("exec:1") for entry in read_again(tmp_path)}
    assert found == {lasting.attempt_id: "nonce", other.attempt_id: None}
    journal.close()


async def test_a_disk_that_fails_on_and_on_is_asked_again_each_time_and_not_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    lasting = await journal.begin(assignment())
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", failing)
        for number in range(20):
            with pytest.raises(JournalError, match="journal cannot be written: Input/output"):
                await journal.begin(assignment())
            lasting.write("number", number)
            with pytest.raises(JournalError):
                await journal.probe()
            assert len(segments(tmp_path)) <= 2
            assert number in {entry.read("number") for entry in read_again(tmp_path)}
    await journal.probe()
    again = await journal.begin(assignment())
    assert len(segments(tmp_path)) == 1
    found = {entry.attempt_id: entry.read("number") for entry in read_again(tmp_path)}
    assert found == {lasting.attempt_id: 19, again.attempt_id: None}
    journal.close()


async def test_half_a_record_that_cannot_be_taken_away_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    entry = await journal.begin(assignment())
    write = os.write
    with monkeypatch.context() as patched:
        room = iter([10])

        def full(descriptor: int, text: bytes) -> int:
            if (left := next(room, 0)) == 0:
                raise OSError(28, "No space left on device")
            return write(descriptor, text[:left])

        patched.setattr(os, "write", full)
        patched.setattr(os, "ftruncate", lambda descriptor, size: failing(descriptor))
        with pytest.raises(JournalError, match="No space"):
            entry.write("lost", "x" * 100)
    entry.write("kept", 1)
    (found,) = read_again(tmp_path)
    assert (found.read("lost"), found.read("kept")) == (None, 1)
    journal.close()


async def test_a_record_that_does_not_fit_leaves_those_before_and_after_it_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    entry = await journal.begin(assignment())
    write = os.write
    with monkeypatch.context() as patched:
        room = iter([10])

        def full(descriptor: int, text: bytes) -> int:
            if (left := next(room, 0)) == 0:
                raise OSError(28, "No space left on device")
            return write(descriptor, text[:left])

        patched.setattr(os, "write", full)
        with pytest.raises(JournalError, match="No space"):
            entry.write("lost", "x" * 100)
    entry.write("kept", 1)
    (found,) = read_again(tmp_path)
    assert (found.read("lost"), found.read("kept")) == (None, 1)
    journal.close()


async def test_only_the_agents_user_can_read_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    await journal.begin(assignment())
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o700
    assert segments(tmp_path / "journal")[0].stat().st_mode & 0o777 == 0o600
    journal.close()
