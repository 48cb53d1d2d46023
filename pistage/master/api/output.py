"""Routes of what steps print: of one run, and over many."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from pistage.errors import Code, PistageError
from pistage.master import reads
from pistage.master.api import views
from pistage.master.api.answering import Answer, Means
from pistage.master.api.asked import Asked, Form, asked_in
from pistage.master.api.context import Context
from pistage.master.api.following import Following
from pistage.master.api.sending import Sender
from pistage.master.reading.selection import Selection

_CONTENT_TYPES: Final = {
    Form.BYTES: "application/octet-stream",
    Form.TEXT: "text/plain",
    Form.JSON: "application/x-ndjson",
    Form.EVENTS: "text/event-stream",
}


class OutputRoutes:
    """The handler of /api/v1/runs/{id}/logs."""

    def __init__(self, context: Context, means: Means) -> None:
        self._context, self._means = context, means

    async def logs(self, request: web.Request) -> web.StreamResponse:
        """What the run printed; ?task= &step= &attempt= &stream= &kept= &stale= say which, &since= &until= of when.

        `Accept` says how: `application/octet-stream` the bytes, `application/x-ndjson` pieces or lines,
        `text/event-stream` numbered events, anything else text for people; ?ansi= &timestamps= are for that.
        ?by=byte, piece or line is what &offset= and &limit= count; &order=time; &follow= until the run is over.
        ?grep= are only lines that hold a text; with &regex= that match it, with &ignore_case= in upper and lower case.
        """
        asked = asked_in(request)
        with self._means.reader():
            return await self._logs(request, asked)

    async def _logs(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        selection = await self._selection(request, asked)
        if not asked.is_stale:
            await self._context.replica.read()  # a leader that was deposed without knowing it has only a part
        sender = Sender(request, _CONTENT_TYPES[asked.form], self._means.turns)
        following = Following(
            context=self._context,
            files=self._means.files,
            is_stale=asked.is_stale,
            has_kept=asked.has_kept,
            has_gaps=asked.form is not Form.BYTES,
            sender=sender,
        )
        await following.learn_attempts(selection)
        answer = Answer(asked, selection, means=self._means, following=following, sender=sender)
        await answer.look()
        try:
            await sender.begin()
            await answer.tell()
            return await sender.end()
        except PistageError as refusal:  # this master leads no longer, say, and the answer has begun
            # Only an end that is none says that there is more: who reads goes on from there with the next leader.
            request.protocol.force_close()
            raise ConnectionError(str(refusal)) from None

    async def _selection(self, request: web.Request, asked: Asked) -> Selection:
        async with self._context.replica.reader.snapshot() as snapshot:
            run_id = await views.resolve_run(snapshot, request.match_info["id"], self._context.project_of(request))
            if asked.wanted.task is not None:
                await views.refuse_unless_task(snapshot, run_id, asked.wanted.task)
            sources = await reads.output_sources(snapshot, run_id)
            dropped = (await reads.output_dropped(snapshot, [run_id])).get(run_id)
            title = (await views.titles_in(snapshot, [run_id]))(run_id)
        if dropped is not None:
            at, reason = dropped
            raise PistageError(Code.NOT_FOUND, f"what {title} printed was dropped at {views.at(at)}: {reason}")
        return Selection(run_id, sources, asked.wanted)
