"""The spool of a command in a shared container: what an engine says where its output would be is none of it."""

from typing import Any

import pytest
from aiodocker.stream import Message

from pistage.agent.runtimes.base import STDERR, STDOUT
from pistage.agent.runtimes.docker_shared import ExecProcess

NONCE = "0" * 24
COMPLAINT = b'connection error: desc = "transport: Error while dialing dial unix containerd.sock"\r\n'


class Kept:
    """Keeps what is written to it."""

    is_deaf = False

    def __init__(self) -> None:
        self.streams = {STDOUT: b"", STDERR: b""}

    async def write(self, stream: int, offset: int, chunk: bytes) -> None:
        self.streams[stream] = self.streams[stream][:offset] + chunk

    def length_of(self, stream: int) -> int:
        return len(self.streams[stream])

    async def note_gap(self, stream: int, offset: int) -> None:
        raise AssertionError("a spool misses nothing")


class Said:
    """The stream of an exec that has said this."""

    def __init__(self, *messages: Message) -> None:
        self._messages = list(messages)

    async def read_out(self) -> Message | None:
        return self._messages.pop(0) if self._messages else None

    async def close(self) -> None:
        pass


class RestartedEngine:
    """Cannot start the first two execs, and says so; the spool holds `spool` of standard output."""

    def __init__(self, spool: bytes) -> None:
        self.spool, self.started, self.drained = spool, 0, 0

    async def create_exec(self, container: str, body: Any) -> str:
        self._words = body["Cmd"][2:]
        return "e"

    async def start_exec(self, exec_id: str) -> Said:
        self.started += 1
        if self.started < 3:
            return Said(Message(STDOUT, COMPLAINT))
        if "tail" not in self._words[0]:
            self.drained += 1
            return Said()
        word = self._words[-1].encode()
        trailer = b"\x01%s:7\n" % NONCE.encode()
        whole = word + self.spool[int(self._words[3]) - 1 :] + trailer
        pieces = [Message(STDOUT, whole[at : at + 5]) for at in range(0, len(whole), 5)]
        return Said(*pieces, Message(STDERR, word + trailer))

    async def exec_state(self, exec_id: str) -> dict[str, Any]:
        return {"ExitCode": 0 if self.started > 2 else 126}

    async def json(self, *arguments: Any, **given: Any) -> dict[str, Any]:
        return {}


async def test_what_an_engine_says_of_itself_is_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pistage.agent.runtimes.docker_own._ENGINE_POLL_S", 0.0)
    engine: Any = RestartedEngine(b"first\nsecond\n")
    process = ExecProcess(engine, "c", "1", NONCE, user="")
    sink = Kept()
    sink.streams[STDOUT] = b"fir"  # came before the engine went away
    assert (await process.ended(sink)).code == 7
    assert sink.streams == {STDOUT: b"first\nsecond\n", STDERR: b""}
    assert engine.drained == 1, "what was not begun is begun again"
