"""A master, whole: opens its directory, founds or finds its cluster, listens, and closes in the reverse order."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import TracebackType

from aiohttp import web

from pistage import wire
from pistage.config import MasterConfig, is_loopback, split_address
from pistage.core import ids, limits
from pistage.core.commands import FoundCluster
from pistage.core.machine import Outcome
from pistage.errors import Code, PistageError
from pistage.master import reads
from pistage.master.api import http
from pistage.master.api.context import Context
from pistage.master.api.routes import Route, routes_of
from pistage.master.api.submissions import Planner
from pistage.master.dispatch import Dispatch
from pistage.master.logs import LogStore
from pistage.master.owning import running
from pistage.master.replica import Replica
from pistage.master.sessions import Sessions
from pistage.master.signals import Signals

log = logging.getLogger(__name__)

_CLOSING_S = 2.0  # for requests under way, when the master stops


class Master:
    """`async with Master(settings, token=token) as master:` serves at `master.url` until it is left.

    PistageError `usage` before anything is touched: a listener beyond loopback without a token, a lease that no
    heartbeat can keep, a directory that another master has open. If the disk or the state fails while serving, the
    block is cancelled and the error raised.
    """

    def __init__(self, settings: MasterConfig, *, token: str | None) -> None:
        self._settings = settings
        self._token = token
        self._stack = AsyncExitStack()
        self.url = ""
        self.routes: list[Route] = []

    async def __aenter__(self) -> Master:
        host, port = split_address(self._settings.listen)
        if self._token is None and not is_loopback(host):
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
        async with AsyncExitStack() as stack:
            await self._start(stack, host, port)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, trace)

    async def _start(self, stack: AsyncExitStack, host: str, port: int) -> None:
        settings = self._settings
        data_dir = settings.data_dir
        stack.enter_context(_locked(data_dir))
        node_id = _node_id(data_dir)
        replica = await stack.enter_async_context(Replica(data_dir).running())
        await _found(replica)
        logs = LogStore(data_dir / "logs", run_bytes_max=settings.run_log_max, free_bytes_min=settings.disk_free_min)
        stack.callback(logs.close)
        sessions = Sessions(replica, logs, heartbeat_s=settings.heartbeat, lease_s=settings.lease)
        dispatch = Dispatch(replica, sessions, logs, lease_s=settings.lease)
        sessions.on_change(dispatch.wake)
        run_signals = Signals()
        replica.on_applied(lambda outcome: _wake_runs(run_signals, outcome))
        context = Context(
            settings=settings,
            node_id=node_id,
            has_token=self._token is not None,
            replica=replica,
            sessions=sessions,
            dispatch=dispatch,
            logs=logs,
            planner=Planner(replica.state_path),
            run_signals=run_signals,
        )
        await stack.enter_async_context(running(logs.serve(), dispatch.serve(), sessions.watch_the_clock()))
        self.routes = routes_of(context)
        bound_port = await stack.enter_async_context(_listening(self.routes, self._token, host, port))
        stack.push_async_callback(sessions.close)
        shown = "127.0.0.1" if host in {"0.0.0.0", "localhost"} else f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{bound_port}"
        log.info("master=%s serves at %s", node_id, self.url)


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Hold the directory for this process alone."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PistageError(
            Code.USAGE, f"cannot use the data directory {data_dir}: {error.strerror}", hint="set data_dir"
        ) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PistageError(
                Code.CONFLICT, f"another master has {data_dir} open", hint="stop it, or set another data_dir"
            ) from None
        yield
    finally:
        os.close(fd)


def _node_id(data_dir: Path) -> str:
    path = data_dir / "node"
    if path.exists() and ids.is_id(known := path.read_text(encoding="ascii").strip()):
        return known
    made = wire.new_id()
    path.write_text(made + "\n", encoding="ascii")
    return made


async def _found(replica: Replica) -> None:
    async with replica.reader.snapshot() as snapshot:
        known = await reads.cluster_id(snapshot)
    if not known:
        await replica.propose(FoundCluster(at=wire.now_ms(), cluster_id=wire.new_id()))


def _wake_runs(signals: Signals, outcome: Outcome) -> None:
    for run_id in outcome.runs:
        signals.wake(run_id)


@asynccontextmanager
async def _listening(routes: list[Route], token: str | None, host: str, port: int) -> AsyncIterator[int]:
    app = web.Application(
        client_max_size=limits.REQUEST_BODY_BYTES_MAX,
        middlewares=[http.explain_errors, http.require_token(token)],
    )
    for route in routes:
        app.router.add_route(route.method, route.path, route.handler)
    # aiohttp closes a connection that has no whole request after the keep-alive time: our header timeout.
    runner = web.AppRunner(
        app, access_log=None, keepalive_timeout=limits.REQUEST_HEADER_TIMEOUT_S, shutdown_timeout=_CLOSING_S,
        handler_cancellation=True,
    )  # fmt: skip
    await runner.setup()
    try:
        try:
            site = web.TCPSite(runner, host, port, backlog=1024)
            await site.start()
        except OSError as error:
            raise PistageError(
                Code.USAGE, f"cannot listen on {host}:{port}: {error.strerror}", hint="set listen to a free port"
            ) from None
        yield _port_of(runner)
    finally:
        await runner.cleanup()


def _port_of(runner: web.AppRunner) -> int:
    return int(runner.addresses[0][1])
