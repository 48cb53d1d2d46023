"""Mending: what is damaged here of an attempt's output is fetched anew from another master that has the same index."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pistage import raft
from pistage.errors import Code, PistageError
from pistage.master import records as index_of
from pistage.master.feeds import Courier
from pistage.master.records import RECORD_BYTES
from pistage.master.sealed import unseal
from pistage.wire import Fetch, Fetched

_FETCH_S = 15.0


class Group(Protocol):
    """What must be known of the masters' group; a Replica is one."""

    @property
    def node_id(self) -> str: ...
    @property
    def term(self) -> int: ...
    @property
    def leader(self) -> str | None: ...
    @property
    def membership(self) -> raft.Config: ...


class Mender:
    """`directory` is that of all output here."""

    def __init__(self, group: Group, courier: Courier, directory: Path) -> None:
        self._group, self._courier, self._directory = group, courier, directory

    @property
    def others(self) -> Sequence[str]:
        """Who may be asked: nobody while no master leads."""
        group = self._group
        if group.leader is None:
            return ()
        # The leader first: nobody has more.
        return sorted(set(group.membership.members) - {group.node_id}, key=lambda node_id: node_id != group.leader)

    async def fetch(self, node_id: str, run_id: str, attempt_id: str, into: Path) -> None:
        """Make a directory with the plain files of an attempt as that master has them.

        PistageError: it cannot be asked, has another index than this one, or less.
        """
        try:
            await self._fetch(node_id, run_id, attempt_id, into)
        except OSError as error:  # whether the disk has failed is for those to find who need it
            raise PistageError(Code.UNAVAILABLE, f"what it has could not be written: {error.strerror}") from None

    async def _fetch(self, node_id: str, run_id: str, attempt_id: str, into: Path) -> None:
        index = self._directory / run_id / "index"
        await asyncio.to_thread(_made_empty, into)
        start, end = await asyncio.to_thread(_range_of, index, attempt_id)
        while start < end:
            before = index_of.read_raw(index, start - 1, 1) if start else b""
            # The term that a leader has here: to promise that to us is to promise it to the leader.
            question = Fetch(self._group.term, run_id, start, before)
            answer = await self._courier.ask(node_id, question, _FETCH_S)
            assert isinstance(answer, Fetched), "the answer to that question"
            start += await asyncio.to_thread(_kept, answer, index, start, attempt_id, into)
            if stub := dict(answer.stubs).get(attempt_id):
                return await asyncio.to_thread(_read_back, stub, into)


def _made_empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()


def _range_of(index: Path, attempt_id: str) -> tuple[int, int]:
    """The first record of the attempt, and the one behind its last."""
    numbers = [number for number, record in enumerate(index_of.all_records(index)) if record.attempt_id == attempt_id]
    return (numbers[0], numbers[-1] + 1) if numbers else (0, 0)


def _kept(answer: Fetched, index: Path, start: int, attempt_id: str, into: Path) -> int:
    """Write what the attempt has in an answer to its files; how many records that was."""
    count = len(answer.records) // RECORD_BYTES
    if not answer.fit.is_taken or not count or index_of.read_raw(index, start, count) != answer.records:
        raise PistageError(Code.UNAVAILABLE, f"it has something else from record {start} on")
    data, at, stubs = memoryview(answer.data), 0, dict(answer.stubs)
    here = [record for record in index_of.unpack(answer.records) if record.attempt_id not in stubs]
    for (of_attempt, step, stream), _, length in index_of.spans(here):
        if of_attempt == attempt_id:
            with (into / f"{step}.{stream}").open("ab") as file:
                file.write(data[at : at + length])
        at += length
    return count


def _read_back(stub: bytes, into: Path) -> None:
    """Write what is in the archive to the attempt's files."""
    (into / "stub").write_bytes(stub)
    unseal(into / "stub", into / "whole")
    for path in (into / "whole").iterdir():
        path.replace(into / path.name)
