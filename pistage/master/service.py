"""A master, whole: opens its directory, founds or finds its group, listens, and closes in the reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import TracebackType

from pistage.config import MasterConfig, is_loopback, split_address
from pistage.core.addresses import AddressRules
from pistage.core.machine import Outcome
from pistage.errors import Code, PistageError
from pistage.master import founding
from pistage.master.afters import Afters
from pistage.master.api import http
from pistage.master.api.context import Context
from pistage.master.api.routes import Route, routes_of
from pistage.master.api.scripts import languages_of
from pistage.master.api.submissions import Planner
from pistage.master.archiving import Archiving
from pistage.master.copies import Copies, HttpCourier
from pistage.master.directories import locked, refuse_unless_space
from pistage.master.dispatch import Dispatch
from pistage.master.driver import Pace
from pistage.master.listening import listening
from pistage.master.logs import LogStore
from pistage.master.logwriter import Bounds
from pistage.master.losses import Losses
from pistage.master.members import Members
from pistage.master.mending import Mender
from pistage.master.notices import Notices
from pistage.master.outward import Outward
from pistage.master.peers import Peers
from pistage.master.replica import Replica
from pistage.master.retention import Drops, Removals, dropped_in
from pistage.master.schedules import Schedules
from pistage.master.sealing import Sealing
from pistage.master.sessions import Sessions
from pistage.master.signals import Signals
from pistage.master.snapshots import Snapshots
from pistage.master.store import DurableLog
from pistage.owning import running

log = logging.getLogger(__name__)


class Master:
    """`async with Master(settings, token=token) as master:` serves at `master.url` until it is left.

    One of several founders is entered only once the others are there. PistageError `usage` before anything is
    touched: a listener beyond loopback without a token, a lease that no heartbeat can keep, a directory that another
    master has open. If the disk or the state fails while serving, the block is cancelled and the error raised.
    """

    def __init__(self, settings: MasterConfig, *, token: str | None) -> None:
        self._settings = settings
        self._token = token
        self._stack = AsyncExitStack()
        self.url = ""
        self.routes: list[Route] = []

    async def __aenter__(self) -> Master:
        host, port = split_address(self._settings.listen)
        if not self._token and not is_loopback(host):
            raise PistageError(
                Code.USAGE,
                f"refusing to listen on {self._settings.listen} without a token: anybody there could run anything",
                hint="set token_file or PISTAGE_TOKEN, or listen on 127.0.0.1",
            )
        if self._settings.lease <= 2 * self._settings.heartbeat:
            raise PistageError(
                Code.USAGE,
                f"a lease of {self._settings.lease:g} s is no more than two heartbeats: every agent would be lost",
                hint="set lease to several times the heartbeat",
            )
        AddressRules.of(self._settings.notice_allow)  # refused before anything is touched
        self.url = founding.advertised(self._settings)
        async with AsyncExitStack() as stack:
            await self._start(stack, host, port)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, trace)

    async def until_told(self, patience_s: float) -> None:
        """Wait until the notices that are due have been tried, but no longer than that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self.context.notices.until_quiet()

    async def _start(self, stack: AsyncExitStack, host: str, port: int) -> None:
        settings, token = self._settings, self._token
        stack.enter_context(locked(settings.data_dir))
        durable_log = await founding.open_log(founding.founder_of(settings, token))
        peers = Peers(lambda: founding.hello_of(durable_log.identity, self.url), token)
        await stack.enter_async_context(running(peers.serve()))
        replica = await stack.enter_async_context(self._replica(durable_log, peers).running())
        peers.on_message(replica.receive)
        context = self.context = self._context(stack, replica, peers)
        await stack.enter_async_context(running(context.logs.serve(), context.members.serve()))
        await stack.enter_async_context(running(context.removals.serve(), context.archiving.serve()))
        await stack.enter_async_context(running(context.sealing.serve()))
        self.routes = routes_of(context)
        bound_port = await stack.enter_async_context(
            listening(
                [(route.method, route.path, route.handler) for route in self.routes],
                [http.explain_errors, http.require_token(token)],
                host,
                port,
            )
        )
        stack.push_async_callback(context.sessions.close)
        if port == 0:
            self.url = self.url.removesuffix(":0") + f":{bound_port}"
        await stack.enter_async_context(_taking_the_lead(context))
        stack.push_async_callback(_step_aside, context)
        log.info("master=%s serves at %s", replica.node_id, self.url)

    def _replica(self, durable_log: DurableLog, peers: Peers) -> Replica:
        settings = self._settings
        return Replica(
            durable_log,
            settings.data_dir,
            carrier=peers,
            pace=Pace.of(election_timeout_s=settings.election_timeout),
            entries_kept=settings.log_entries_kept,
        )

    def _context(self, stack: AsyncExitStack, replica: Replica, peers: Peers) -> Context:
        settings = self._settings
        bounds = Bounds(
            run_bytes_max=settings.run_log_max,
            step_bytes_max=settings.step_log_max,
            free_bytes_min=settings.disk_free_min,
        )
        logs = LogStore(settings.data_dir / "logs", bounds)
        stack.callback(logs.close)
        courier = HttpCourier(peers, replica.identity.group_id)
        mender = Mender(replica, courier, settings.data_dir / "logs")
        sealing = Sealing(lambda: replica.reader, logs, settings.data_dir / "logs", mender=mender)
        stack.callback(sealing.close)
        replica.on_applied(sealing.notice)
        copies = Copies(replica, logs, courier, replicas=settings.log_replicas, dropped=dropped_in(replica))
        sessions = Sessions(replica, copies, heartbeat_s=settings.heartbeat, lease_s=settings.lease)
        dispatch = Dispatch(replica, sessions, logs)
        sessions.on_change(dispatch.wake)
        planner = Planner(lambda: replica.reader.path, languages_of(settings))
        outward = Outward(AddressRules.of(settings.notice_allow))
        stack.push_async_callback(outward.close)
        run_signals = Signals()
        replica.on_applied(lambda outcome: _wake_runs(run_signals, outcome))
        return Context(
            settings=settings,
            has_token=self._token is not None,
            replica=replica,
            peers=peers,
            members=Members(replica, peers, seeds=settings.peers),
            snapshots=Snapshots(settings.data_dir / "snapshots"),
            sessions=sessions,
            dispatch=dispatch,
            losses=Losses(replica, sessions, lease_s=settings.lease),
            drops=Drops(replica),
            schedules=Schedules(replica, planner, refuse_unless_space=partial(refuse_unless_space, settings)),
            afters=Afters(replica, planner, refuse_unless_space=partial(refuse_unless_space, settings)),
            outward=outward,
            notices=Notices(replica, outward),
            removals=Removals(replica, logs, copies),
            sealing=sealing,
            archiving=Archiving(
                replica, logs, settings.data_dir / "logs", url=settings.archive, after_s=settings.archive_after
            ),
            logs=logs,
            copies=copies,
            planner=planner,
            run_signals=run_signals,
        )


@asynccontextmanager
async def _taking_the_lead(context: Context) -> AsyncIterator[None]:
    """Lead whenever this master is elected. One that is alone leads from the start."""
    replica = context.replica
    if replica.is_alone:
        await replica.until_leading()
        await context.members.found()
    async with running(_lead(context)):
        yield


async def _lead(context: Context) -> None:
    replica = context.replica
    while True:
        await replica.until_leading()
        log.info("term=%d this master leads", replica.term)
        try:
            await context.members.found()
        except PistageError as refusal:
            log.info("term=%d not for long: %s", replica.term, refusal)
            continue
        context.sessions.open()
        sessions = (context.sessions.watch_the_clock(), context.sessions.answer_heartbeats())
        services = (
            *sessions,
            context.dispatch.serve(),
            context.losses.serve(),
            context.drops.serve(),
            context.schedules.serve(),
            context.afters.serve(),
            context.notices.serve(),
            context.archiving.lead(),
        )
        async with running(*services, context.members.lead(), context.copies.lead()):
            await replica.until_deposed()
        await context.sessions.close(leader=context.leader_elsewhere())
        log.info("this master leads no longer")


async def _step_aside(context: Context) -> None:
    """The first thing when a master stops, while it still answers: another leads, and the agents are sent there."""
    await context.replica.hand_over()
    await context.sessions.close(leader=context.leader_elsewhere())
    await context.peers.hang_up()


def _wake_runs(signals: Signals, outcome: Outcome) -> None:
    for run_id in outcome.runs:
        signals.wake(run_id)
