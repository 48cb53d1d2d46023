"""A master at the agent's door: speaks the session protocol, keeps what it hears, and says what a test tells it."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import WSMsgType, web

from pistage import wire
from pistage.core import limits
from pistage.core.commands import AttemptEvent, Finished, StepFinished
from pistage.core.model import AgentInfo
from pistage.core.plan import Block, Context, Network, Node, Program, Step, Task, Volume
from tests.agent.fake_store import FakeStore

TOKEN = "a-token-of-the-cluster"
WAIT_S = 60.0


@dataclass
class FakeMaster:
    """One master. Output is appended iff it continues what is there, as the real one does it."""

    cluster_id: str = field(default_factory=wire.new_id)
    lease_s: float = 20.0
    events: list[AttemptEvent] = field(default_factory=list)
    store: FakeStore = field(default_factory=FakeStore)
    codecs: tuple[int, ...] = (0,)  # that it knows
    codecs_seen: set[int] = field(default_factory=set)  # of frames
    hellos: list[wire.Hello] = field(default_factory=list)
    unwanted: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    live_runs: list[str] = field(default_factory=list)
    log_refusal: wire.LogRefused | None = None
    redirect_to: str = ""
    is_deaf: bool = False  # hears and does not answer
    has_no_quorum: bool = False  # answers everything but heartbeats
    is_left: bool = False  # the agent says that it takes no more work
    sockets: list[web.WebSocketResponse] = field(default_factory=list)
    url: str = ""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _runner: web.AppRunner | None = None
    _fence: int = 0

    async def start(self, port: int = 0) -> None:
        app = web.Application()
        app.router.add_get("/agent/v1/session", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self.hang_up()
        if self._runner:
            await self._runner.cleanup()

    async def hang_up(self) -> None:
        for socket in self.sockets:
            await socket.close()
        self.sockets.clear()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise web.HTTPUnauthorized
        if self.redirect_to:
            raise web.HTTPTemporaryRedirect(f"{self.redirect_to}/agent/v1/session")
        socket = web.WebSocketResponse(max_msg_size=limits.SESSION_MESSAGE_BYTES_MAX)
        await socket.prepare(request)
        hello = wire.unpack_message(await socket.receive_bytes())
        assert isinstance(hello, wire.Hello)
        self.hellos.append(hello)
        await self._welcome(socket, hello)
        self.sockets.append(socket)
        self._changed.set()
        async for frame in socket:
            if frame.type is WSMsgType.BINARY and not self.is_deaf:
                if (packed := wire.unpack_value(frame.data))[0] == "log":
                    self.codecs_seen.add(packed[6])
                await self._hear(socket, wire.unpack_message(frame.data))
                self._changed.set()
        if socket in self.sockets:
            self.sockets.remove(socket)
        return socket

    async def _welcome(self, socket: web.WebSocketResponse, hello: wire.Hello) -> None:
        verdicts = tuple(
            wire.Verdict(attempt_id=held.attempt_id, is_kept=held.attempt_id not in self.unwanted)
            for held in hello.held
        )
        welcome = wire.Welcome(
            cluster_id=self.cluster_id, epoch=len(self.hellos), heartbeat_s=0.5, lease_s=self.lease_s,
            codecs=self.codecs, verdicts=verdicts, live_runs=tuple(self.live_runs),
        )  # fmt: skip
        await socket.send_bytes(wire.pack_message(welcome))

    async def _hear(self, socket: web.WebSocketResponse, message: wire.ToMaster | wire.ToAgent) -> None:
        answer: wire.ToAgent | None = None
        match message:
            case wire.Heartbeat() if self.has_no_quorum:
                answer = wire.Reported(number=0)  # some word, so that the agent stays
            case wire.Leaving():
                self.is_left = True
            case wire.Heartbeat(number=number):
                answer = wire.HeartbeatAck(number=number)
            case wire.Report(number=number, events=events):
                self.events += [event for event in events if event not in self.events]
                refused = tuple({event.attempt_id for event in events} & self.refused)
                answer = wire.Reported(number=number, refused=refused)
            case wire.LogFrame() | wire.LogGap():
                answer = self._append(message)
        if answer:
            await socket.send_bytes(wire.pack_message(answer))

    def _append(self, frame: wire.LogFrame | wire.LogGap) -> wire.ToAgent:
        if self.log_refusal:
            return wire.LogRefused(
                attempt_id=frame.attempt_id, step=frame.step, stream=frame.stream,
                reason=self.log_refusal.reason, is_final=self.log_refusal.is_final,
            )  # fmt: skip
        assert len(frame.data) <= limits.FRAME_BYTES_MAX
        return self.store.append(frame)

    # --- what tests say and ask -----------------------------------------------------------------------------

    async def send(self, message: wire.ToAgent) -> None:
        await self.until(lambda: bool(self.sockets))
        await self.sockets[-1].send_bytes(wire.pack_message(message))

    async def until(self, claim: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        """Wait until `claim` holds; it is looked at whenever something was heard."""
        async with asyncio.timeout(timeout_s):
            while not claim():
                self._changed.clear()
                await self._changed.wait()

    async def assign(self, task: Task, **fields: object) -> wire.Assign:
        self._fence += 1
        assign = an_assign(task, **({"fence": self._fence, "cluster_id": self.cluster_id} | fields))
        self.live_runs.append(assign.run_id)
        await self.send(assign)
        return assign

    async def finished(self, assign: wire.Assign, timeout_s: float = WAIT_S) -> Finished:
        await self.until(lambda: self.end_of(assign) is not None, timeout_s)
        end = self.end_of(assign)
        assert end is not None
        return end

    async def run(self, task: Task, **fields: object) -> Finished:
        return await self.finished(await self.assign(task, **fields))

    def end_of(self, assign: wire.Assign) -> Finished | None:
        own = (e for e in self.events if isinstance(e, Finished) and e.attempt_id == assign.attempt_id)
        return next(own, None)

    def heard_of(self, assign: wire.Assign) -> bool:
        return any(event.attempt_id == assign.attempt_id for event in self.events)

    def steps_of(self, attempt_id: str) -> dict[str, StepFinished]:
        return {e.step: e for e in self.events if isinstance(e, StepFinished) and e.attempt_id == attempt_id}

    def heard(self, kind: type[AttemptEvent], step: str = "1") -> bool:
        return any(isinstance(event, kind) and getattr(event, "step", step) == step for event in self.events)

    def stdout(self, attempt_id: str, step: str = "1") -> bytes:
        return bytes(self.store.streams[attempt_id, step, 1].kept)

    def stderr(self, attempt_id: str, step: str = "1") -> bytes:
        return bytes(self.store.streams[attempt_id, step, 2].kept)

    def gaps(self, attempt_id: str, step: str = "1", stream: int = 1) -> list[tuple[wire.GapReason, int, int]]:
        """Reason, offset and length of each."""
        return self.store.streams[attempt_id, step, stream].gaps

    def check_output(self, attempt_id: str) -> None:
        """Every step's output is here to the last byte, by its own account of it."""
        for step, event in self.steps_of(attempt_id).items():
            for number, end in ((1, event.stdout), (2, event.stderr)):
                if end is not None:
                    stream = self.store.streams[attempt_id, step, number]
                    told = (stream.end, stream.missing, hashlib.sha256(stream.kept).hexdigest())
                    assert told == (end.length, end.missing, end.sha256)
                    assert not stream.missing


@asynccontextmanager
async def fake_master() -> AsyncIterator[FakeMaster]:
    master = FakeMaster()
    await master.start()
    try:
        yield master
    finally:
        await master.stop()


# --- tasks ---------------------------------------------------------------------------------------------------


def script(text: str, *, id: str = "1", context: str = "c1", **fields: object) -> Step:
    return Step(id=id, name=id, context=context, script=text, **fields)  # type: ignore[arg-type]


def program(text: str, *args: str, language: str = "sh", stdin: bytes = b"", id: str = "1", **fields: object) -> Step:
    made = Program(
        language=language, text=text, ending=f".{language}", command=(language,), args=args,
        stdin=base64.b64encode(stdin).decode(),
    )  # fmt: skip
    return Step(id=id, name=id, context="c1", program=made, **fields)  # type: ignore[arg-type]


def task(*children: Node, image: str = "busybox", **fields: object) -> Task:
    """A task with its steps in order; each context they name is made from `image`."""
    body = Block(kind="sequence", children=children)
    bare = Task(name="a task", body=body, contexts=())
    names = dict.fromkeys(step.context for step in bare.steps())
    contexts = tuple(Context(id=name, image=image) for name in names)
    values: dict[str, object] = {"name": "a task", "body": body, "contexts": contexts} | fields
    return Task(**values)  # type: ignore[arg-type]


def an_assign(task: Task, **fields: object) -> wire.Assign:
    values: dict[str, object] = {
        "attempt_id": wire.new_id(), "fence": 1, "run_id": wire.new_id(), "run_number": 7, "run_name": "a run",
        "number": 1, "cluster_id": wire.new_id(), "task": task,
    } | fields  # fmt: skip
    return wire.Assign(**values)  # type: ignore[arg-type]


def network(name: str) -> Network:
    return Network(name=name)


def volume(name: str) -> Volume:
    return Volume(name=name)


def info_of(master: FakeMaster) -> AgentInfo:
    return master.hellos[-1].info
