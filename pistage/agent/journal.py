"""The journal: what a later process must know of each attempt to see it through.

All attempts share a file, so that those that come together share one flush of the disk. An assignment is flushed before
anything is made for it. What follows is written before it has an effect, which is enough when only the agent is killed;
it is flushed (`Entry.flush`) only before an effect that outlives the machine's own start and cannot be found again
otherwise: before a command is started in a container that has others, before the container of a step that ended is
removed. The rest, when the power fails, is told again: a container by its name, a plain process by having ended with
the machine, an event by being reported twice, of which masters take the first.

Once the master has acknowledged an attempt's end and its objects are gone, its records are dead; when all are, the file
is emptied, and before they are too many, what lives moves to another file; so it does when the disk failed under this
one. It may hold registry credentials, so only the agent's user can read it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pistage.agent.lease import boot_id
from pistage.agent.segment import Segment
from pistage.core import codec, ids, limits
from pistage.core.commands import AttemptEvent, Finished, StepFinished
from pistage.wire import Assign, pack_message, unpack_message

log = logging.getLogger(__name__)

_SEGMENT_BYTES_MAX = 8 * limits.MIB
_ROOM_BYTES = 256 * limits.KIB  # for a few assignments and what follows them
_SUFFIX = ".journal"
_DRAFT_SUFFIX = ".draft"


class JournalError(Exception):
    """The journal cannot be written: what was to be recorded is not, or may not last."""


def journal_error_in(error: Exception) -> JournalError | None:
    """The trouble with the journal that `error` is, or that ended this group of tasks."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, JournalError) else None


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JournalError(f"the agent's journal cannot be written: {error.strerror or error}") from error


class Entry:
    """An attempt in the journal."""

    def __init__(self, journal: Journal, assign: Assign, *, boot: str) -> None:
        self.assign = assign
        self.events: list[AttemptEvent] = []
        self.is_inherited = False
        self._has_finished = False
        self._notes: dict[str, Any] = {}
        self._journal: Journal | None = journal
        self._boot = boot

    @property
    def attempt_id(self) -> str:
        return self.assign.attempt_id

    @property
    def is_over(self) -> bool:
        """Whether the attempt's end is recorded; what it made may still be there."""
        return self._has_finished

    @property
    def is_of_this_boot(self) -> bool:
        """Whether the machine has not been started since it began."""
        return bool(self._boot) and self._boot == boot_id()

    def contexts_left(self) -> set[str]:
        """The contexts that still have something to run."""
        ended = {event.step for event in self.events if isinstance(event, StepFinished)}
        return {step.context for step in self.assign.task.steps() if step.id not in ended}

    def add_event(self, event: AttemptEvent) -> None:
        """Record what will be reported; JournalError if that is not possible, and then nothing is."""
        self._append("event", codec.to_plain(AttemptEvent, event))
        self._note_event(event)

    def read(self, key: str) -> Any:
        """What was noted under `key`, or None."""
        return self._notes.get(key)

    def write(self, key: str, note: Any) -> None:
        """Note plain values under `key`; JournalError if that is not possible."""
        self._append("note", key, note)
        self._notes[key] = note

    def notes(self, prefix: str) -> Iterator[tuple[str, Any]]:
        """Every note whose key begins with `prefix`."""
        return iter([(key, note) for key, note in self._notes.items() if key.startswith(prefix)])

    async def flush(self) -> None:
        """Return once all of it is on the disk; JournalError if that is not possible."""
        if self._journal is not None:
            await self._journal.flush()

    def drop(self) -> None:
        """The attempt is over and forgotten."""
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.forget(self)

    def _append(self, kind: str, *fields: Any) -> None:
        if self._journal is not None:  # given up meanwhile: nobody will read it again
            self._journal.append([self.attempt_id, kind, *fields])

    def _note_event(self, event: AttemptEvent) -> None:
        self.events.append(event)
        self._has_finished = self._has_finished or isinstance(event, Finished)

    # --- as records ---------------------------------------------------------------------------------------------

    def whole(self) -> list[Any]:
        """All of it, as one record: it is there, or it is not."""
        events = [codec.to_plain(AttemptEvent, event) for event in self.events]
        return [self.attempt_id, "whole", pack_message(self.assign), self._boot, events, self._notes]

    @classmethod
    def of_record(cls, journal: Journal, record: list[Any]) -> Entry | None:
        """The entry that such a record begins, or None."""
        match record:
            case [attempt_id, "whole", bytes(packed), boot, events, notes]:
                assign = unpack_message(packed)
                if not isinstance(assign, Assign) or assign.attempt_id != attempt_id:
                    return None
                entry = cls(journal, assign, boot=boot)
                entry.is_inherited = True
                entry._notes |= notes
                for plain in events:
                    entry._note_event(codec.from_plain(AttemptEvent, plain))
                return entry
            case _:
                return None

    def replay(self, record: list[Any]) -> None:
        """Take in a record that an agent before this one added."""
        match record:
            case [_, "event", plain]:
                self._note_event(codec.from_plain(AttemptEvent, plain))
            case [_, "note", key, note]:
                self._notes[key] = note


class Journal:
    """A directory with one segment, or with two while one takes the other's place.

    Where it cannot be written, each call raises JournalError for whoever made it, and the next call tries again.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._entries: dict[str, Entry] = {}
        self._old: list[Segment] = []
        for draft in directory.glob(f"*{_DRAFT_SUFFIX}"):
            draft.unlink()
        numbers = sorted(int(file.stem) for file in directory.glob(f"*{_SUFFIX}") if file.stem.isdigit())
        for number in numbers[:-1]:  # of a move that did not come to its end
            earlier = Segment(self._file(number))
            self._replay(earlier)
            self._old.append(earlier)
        self._number = numbers[-1] if numbers else 1
        self._segment = Segment(self._file(self._number))
        self._replay(self._segment)

    def load(self) -> list[Entry]:
        """What the process before this one left, oldest first."""
        return [self._entries[attempt_id] for attempt_id in sorted(self._entries)]

    async def begin(self, assign: Assign) -> Entry:
        """Record an assignment; only after this may anything be made for it. After JournalError it never was."""
        assert ids.is_id(assign.attempt_id), "attempts are known by ids of ours"
        entry = Entry(self, assign, boot=boot_id())
        with _translated():
            if self._segment.size > _SEGMENT_BYTES_MAX:
                self._move()
        self.append(entry.whole())
        self._entries[assign.attempt_id] = entry
        try:
            await self.flush()
        except JournalError:
            self.forget(entry)
            raise
        return entry

    async def flush(self) -> None:
        """Return once all that was recorded is on the disk. One that fails is asked once more, for another file."""
        with _translated():
            try:
                await self._flush_segment()
            except OSError:
                await self._flush_segment()

    async def _flush_segment(self) -> None:
        segment, old = self._sound_segment(), list(self._old)
        await segment.flush()
        for earlier in old:  # all that lives of them was copied before
            if earlier in self._old:
                self._old.remove(earlier)
                earlier.supersede()

    def append(self, record: list[Any]) -> None:
        """Add to an entry."""
        with _translated():
            self._sound_segment().append(record)

    async def probe(self) -> None:
        """Return if there is room for more work and the disk keeps it; else JournalError."""
        self.append(["", "room", bytes(_ROOM_BYTES)])
        await self.flush()

    def forget(self, entry: Entry) -> None:
        """Its records are dead."""
        self._entries.pop(entry.attempt_id, None)
        with suppress(OSError):  # a later agent is told by the masters that nobody wants it
            if not self._entries and not self._old:
                self._segment.clear()
            else:
                self._segment.append([entry.attempt_id, "dropped"])

    def close(self) -> None:
        """Leave it for the next start."""
        for segment in (*self._old, self._segment):
            segment.close()

    def _sound_segment(self) -> Segment:
        """The segment to write to: where the disk failed under it, another one."""
        if (failure := self._segment.failure) is not None:
            self._move()
            log.warning("journal=%s goes on where another one failed: %s", self._segment.file, failure)
        return self._segment

    def _move(self) -> None:
        """Go on in another file, with what lives; the one before it goes once that is durable."""
        file = self._file(self._number + 1)
        draft = file.with_suffix(_DRAFT_SUFFIX)
        draft.unlink(missing_ok=True)
        fresh = Segment(draft)
        try:
            for entry in self._entries.values():
                fresh.append(entry.whole())
            # Named once it is whole: work may go on in the file before it, and half of a copy, read after that, would
            # take attempts back in time.
            fresh.rename(file)
        except OSError:
            fresh.discard()
            raise
        if self._segment.is_worthless:
            self._segment.discard()  # else a disk that fails again and again fills up
        else:
            self._old.append(self._segment)
        self._segment = fresh
        self._number += 1

    def _file(self, number: int) -> Path:
        return self._directory / f"{number:08}{_SUFFIX}"

    def _replay(self, segment: Segment) -> None:
        for record in segment.records:
            match record:
                case [str(attempt_id), "whole", *_]:
                    if (entry := Entry.of_record(self, record)) is not None:
                        self._entries[attempt_id] = entry
                case [str(attempt_id), "dropped"]:
                    self._entries.pop(attempt_id, None)
                case [str(attempt_id), *_] if attempt_id in self._entries:
                    self._entries[attempt_id].replay(record)
        segment.records.clear()
