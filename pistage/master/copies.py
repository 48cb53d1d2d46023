"""Copies of output on several masters: the leader acknowledges what enough of them have, and a new one goes on there.

Output is outside the replicated log; but the index of each run is kept alike on the masters by the same rules, with
the leader's term in each record. `tenure` is the leader's side; the answers to it are here.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Final, assert_never

import aiohttp

from pistage import wire
from pistage.core import limits
from pistage.errors import Code, PistageError
from pistage.master.feeds import COPY_BYTES, RUNS_AT_ONCE, Courier
from pistage.master.logs import LogStore
from pistage.master.logwriter import Appended
from pistage.master.peers import UNREACHABLE, Peers
from pistage.master.tenure import LISTED_AT_ONCE, SURVEYED_AT_ONCE, Dropped, Group, Tenure, deposed
from pistage.owning import running
from pistage.wire import Copied, Copy, CopyAnswer, CopyQuestion, Extents, Fetch, Inventory, LogFrame, LogGap, Survey

log = logging.getLogger(__name__)

OUTPUT_PATH: Final = "/raft/v1/output"
BODY_BYTES_MAX: Final = 4 * COPY_BYTES  # a batch, its records, and one frame more
_CONNECT_S = 1.0
_ANSWER_S = 10.0
_PIECE_BYTES = 256 * limits.KIB
_AGAIN_S = 1.0
_BEGIN_S = 1.0


class Copies:
    """`lead` on the master that leads; the rest on every master."""

    def __init__(
        self, group: Group, logs: LogStore, courier: Courier, *, replicas: int, dropped: Dropped | None = None
    ) -> None:
        self._group, self._logs, self._courier, self._replicas = group, logs, courier, replicas
        self._dropped = dropped or _nothing_dropped
        self._tenure: Tenure | None = None
        self._began = asyncio.Event()

    async def append(self, run_id: str, frame: LogFrame | LogGap) -> asyncio.Future[Appended]:
        """Take a frame over; waits while the disk is behind. The future is done once it may be acknowledged.

        Its PistageError, or the one raised, is for now: the sender keeps the frame and tries again.
        """
        if self._tenure is None:
            raise deposed()
        return await self._tenure.append(run_id, frame)

    async def readable(self, run_id: str) -> int:
        """How many records of the run's index may be shown: what is beyond could still be unsaid.

        PistageError `unavailable` where this master does not lead, or cannot know now what it lacks.
        """
        try:
            async with asyncio.timeout(_BEGIN_S):  # a leader that was just elected begins in a moment
                while self._tenure is None:
                    await self._began.wait()
        except TimeoutError:
            raise deposed() from None
        return await self._tenure.readable(run_id)

    def drop(self, run_ids: Sequence[str]) -> None:
        """The output of these runs is removed everywhere."""
        if self._tenure is not None:
            self._tenure.drop(run_ids)

    async def lead(self) -> None:
        """Care for output while this master leads, until cancelled."""
        while True:
            while not self._group.is_leading:
                await self._group.role_change()
            tenure = Tenure(self._group, self._logs, self._courier, replicas=self._replicas, dropped=self._dropped)
            self._tenure = tenure
            self._began.set()
            try:
                async with running(self._serve(tenure)):
                    while self._group.term == tenure.term:
                        await self._group.role_change()
            finally:
                self._tenure = None
                self._began = asyncio.Event()
                tenure.close()

    async def _serve(self, tenure: Tenure) -> None:
        while True:
            try:
                await self._logs.promise(tenure.term)
            except PistageError as refusal:
                log.warning("term=%d no output is taken: %s", tenure.term, refusal)
                await asyncio.sleep(_AGAIN_S)
            else:
                break
        await tenure.serve()

    async def answer(self, question: CopyQuestion) -> CopyAnswer:
        """What another master asks, who leads. PistageError `conflict` where a later one does."""
        if question.term < self._group.term:
            raise PistageError(Code.CONFLICT, f"the masters are in term {self._group.term}")
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await self._answer(question)
        except TimeoutError:
            raise PistageError(Code.TIMEOUT, "its disk is slow") from None

    async def _answer(self, question: CopyQuestion) -> CopyAnswer:
        match question:
            case Survey(term=term, run_ids=run_ids) if len(run_ids) <= SURVEYED_AT_ONCE:
                return Extents(await self._logs.survey(term, run_ids))
            case Inventory(before=before, limit=limit) if 0 < limit <= LISTED_AT_ONCE:
                return Extents(await self._logs.inventory(before, limit))
            case Copy(term=term, pieces=pieces) if len(pieces) <= RUNS_AT_ONCE:
                return Copied(await self._logs.extend(term, pieces))
            case Fetch(term=term, run_id=run_id, start=start, before=before):
                await self._logs.promise(term)
                return await self._logs.fetch(run_id, start, before, COPY_BYTES)
            case Survey() | Inventory() | Copy():
                raise PistageError(Code.TOO_LARGE, "more at once than a master asks")
            case _:
                assert_never(question)


class HttpCourier:
    """A POST for each question, over connections that stay open."""

    def __init__(self, peers: Peers, group_id: str) -> None:
        self._peers, self._group_id = peers, group_id

    async def ask(self, node_id: str, question: CopyQuestion, timeout_s: float) -> CopyAnswer:
        """See Courier."""
        url = self._peers.url_of(node_id)
        if url is None:
            raise PistageError(Code.UNAVAILABLE, f"where master {node_id} is reached is not known")
        raw = wire.pack_copy_question(self._group_id, question)
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S)
        headers = {"Content-Length": str(len(raw)), "Content-Type": "application/octet-stream"}
        try:
            async with self._peers.http.post(
                url + OUTPUT_PATH, data=_in_pieces(raw), headers=headers, timeout=timeout
            ) as response:
                body = await response.read()
                if response.status != 200:
                    raise _refusal_in(body)
        except UNREACHABLE as error:
            raise PistageError(Code.UNAVAILABLE, f"{url}: {error or type(error).__name__}") from None
        return wire.unpack_copy_answer(question, body)


async def _nothing_dropped(run_ids: Sequence[str]) -> Sequence[str]:
    return ()


async def _in_pieces(raw: bytes) -> AsyncIterator[memoryview]:
    for start in range(0, len(raw), _PIECE_BYTES):  # between them the loop gets to heartbeats
        yield memoryview(raw)[start : start + _PIECE_BYTES]


def _refusal_in(body: bytes) -> PistageError:
    try:
        return PistageError.from_problem(json.loads(body))
    except (ValueError, AttributeError):
        return PistageError(Code.UNAVAILABLE, f"it answered {body[:200]!r}")
