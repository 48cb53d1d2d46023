"""The engine is killed under running steps and started again: each ends with the truth, or is lost and tried again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.fleets import a_fleet, all_ended, attempts_of, connected, the_engine
from tests.e2e.processes import output_of, until
from tests.engine import require_engine
from tests.master.fakes import Api

ENGINE = Path(__file__).parents[2] / "scripts" / "engine"

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(180)]


class OwnEngine:
    """An engine in a directory of its own, started as scripts/engine does it, and perhaps with more flags."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self.directory, self.socket = directory, str(directory / "docker.sock")
        self._flags = flags
        self.is_live_restoring = "--live-restore" in flags
        self._argv: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """The first time: with images."""
        await self._script("start")
        await self._script("images", "busybox:latest")
        # What this machine lets an engine have, such as a packet filter, is known to the one that runs.
        argv = Path(f"/proc/{self._pid()}/cmdline").read_bytes().split(b"\0")
        self._argv = [*(os.fsdecode(part) for part in argv if part), *self._flags]
        await self._script("stop")
        await self.again()

    async def again(self) -> None:
        for left in ("pid", "exec/containerd/containerd.pid"):
            (self.directory / left).unlink(missing_ok=True)
        self._launch()
        async with the_engine(self.socket) as engine:
            await until(lambda: engine.call("GET", "/version"))

    def _launch(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(self._argv, stdout=log, stderr=log, start_new_session=True)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    async def remove(self) -> None:
        self._end(signal.SIGTERM)
        await self._script("remove")

    def _end(self, number: signal.Signals) -> None:
        if (process := self._process) is not None:
            self._process = None
            process.send_signal(number)
            process.wait(20)

    def _pid(self) -> int:
        return int((self.directory / "pid").read_text())

    async def _script(self, verb: str, *words: str) -> None:
        process = await asyncio.create_subprocess_exec(
            ENGINE, verb, self.directory, *words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert await process.wait() == 0, f"scripts/engine {verb}"


@pytest.fixture(params=[(), ("--live-restore",)], ids=["as it is", "live restore"])
async def own_engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[OwnEngine]:
    require_engine()  # where there is no engine at all, none can be started
    if os.geteuid() != 0 and os.environ.get("CI") != "true":
        pytest.skip("only root can start an engine")
    engine = OwnEngine(tmp_path_factory.mktemp("e"), *request.param)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.remove()


@dataclass(frozen=True, slots=True)
class Work:
    """A run that prints for so long, and ends with this code. The second time it is short; a stop signal ends it."""

    title: str
    ticks: int
    code: int = 0
    is_shared: bool = False

    def definition(self) -> dict[str, Any]:
        ticking = (
            f"trap 'exit 143' TERM; n={self.ticks}; [ $PISTAGE_ATTEMPT = 1 ] || n=1; i=0\n"
            f"while [ $i -lt $n ]; do i=$((i+1)); echo tick $i; sleep 0.2; done; exit {self.code}"
        )
        base = {"name": self.title, "retry": 0}
        if self.is_shared:
            return base | {"uses": {"main": [{"run": "true", "image": "busybox"}, {"run": ticking}]}}
        return base | {"image": "busybox", "run": ticking}

    @property
    def state(self) -> str:
        return "failed" if self.code else "succeeded"

    @property
    def output(self) -> bytes:
        return "".join(f"tick {n}\n" for n in range(1, self.ticks + 1)).encode()


AWAY, ON = 10, 60  # ticks: these end while the engine is away, those do not
WORK = [
    Work("ends well", AWAY),
    Work("ends badly", AWAY, code=3),
    Work("ends well in a shared context", AWAY, is_shared=True),
    Work("runs on", ON),
    Work("runs on and fails", ON, code=4),
    Work("runs on in a shared context", ON, is_shared=True),
]
LATE = Work("submitted meanwhile", 1)


async def test_steps_under_an_engine_that_is_killed_end_with_the_truth_or_are_tried_again(
    tmp_path: Path, own_engine: OwnEngine
) -> None:
    async with a_fleet(tmp_path) as (fleet, api):
        flags = ("--engine", f"unix://{own_engine.socket}", "--slots", "16", "--cpus", "8", "--stop-grace", "1s")
        fleet.start_agent(*flags, name="d1", runtime="docker")
        await connected(api, "d1")
        run_ids = [await submit(api, work) for work in WORK]
        await until(lambda: all_tick(api, run_ids))
        own_engine.kill()
        # Nobody but the machine can be asked for them.
        await until(lambda: len(ticking(run_ids)) == len(WORK) // 2)
        run_ids.append(await submit(api, LATE))
        await own_engine.again()
        runs = await all_ended(api, run_ids, timeout_s=60)
        for run, work in zip(runs, [*WORK, LATE], strict=True):
            *lost, last = attempts_of(run)
            print(run["name"], run["state"], *[one["reason"] for one in lost], sep=": ")
            assert {(one["state"], one["failure"]) for one in lost} <= {("lost", "lost")}, run
            fences = [one["fence"] for one in (*lost, last)]
            assert fences == sorted(set(fences))
            assert (run["state"], last["state"], last["exit_code"]) == (work.state, work.state, work.code), run
            if own_engine.is_live_restoring and work.ticks == ON:
                assert not lost and await output_of(api, run["id"]) == work.output
                _, text = await api.call("GET", f"/api/v1/runs/{run['id']}/logs?stream=stdout")
                # In a shared container everything is written to files, which miss nothing.
                assert text.count("[the engine was away") == (0 if work.is_shared else 1)
        once = [run["name"] for run in runs if len(attempts_of(run)) == 1]
        assert {"ends well", "ends badly"} <= set(once), "the engine knows how these ended"
        assert LATE.title in once, "it waits for the engine"
        await nothing_left(own_engine, fleet.cluster_id)


async def submit(api: Api, work: Work) -> str:
    status, run = await api.call("POST", "/api/v1/runs", json=work.definition())
    assert status == 201, run
    return str(run["id"])


async def all_tick(api: Api, run_ids: list[str]) -> bool:
    return all([b"tick" in await output_of(api, run_id) for run_id in run_ids])


def ticking(run_ids: list[str]) -> set[str]:
    """The runs of these that have a process on this machine that ticks."""
    found = set()
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with suppress(OSError):
                environ = (directory / "environ").read_bytes().split(b"\0")
                if b"tick" in (directory / "cmdline").read_bytes():
                    found |= {run_id for run_id in run_ids if b"PISTAGE_RUN_ID=" + run_id.encode() in environ}
    return found


async def nothing_left(engine: OwnEngine, cluster_id: str) -> None:
    async with the_engine(engine.socket) as client:

        async def is_clean() -> bool:
            return not await client.containers(f"pistage.cluster={cluster_id}")

        try:
            await until(is_clean, 20)
        except (TimeoutError, aiohttp.ClientError):
            raise AssertionError(await client.containers(f"pistage.cluster={cluster_id}")) from None
