"""Several masters as processes: started, damaged, and asked how far each of them is."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from pistage import wire
from tests.e2e.processes import TOKEN, Processes, free_port, until
from tests.master.fakes import HELLO_YAML


class Masters(Processes):
    """A group of masters named m1, m2, …; `peers` is what each is configured with."""

    def __init__(self, directory: Path, count: int = 3) -> None:
        super().__init__(directory)
        self.urls: dict[str, str] = {}
        self.founders = [self.add() for _ in range(count)]

    def add(self) -> str:
        """The name of one more; it does not run yet."""
        name = f"m{len(self.urls) + 1}"
        self.urls[name] = f"http://127.0.0.1:{free_port()}"
        self.environ["PISTAGE_SERVER"] = ",".join(self.urls.values())
        return name

    def flags(self, name: str, peers: str | None = None) -> list[str]:
        """The configuration of a master, the same for `serve` and `cluster join`."""
        listen = self.urls[name].removeprefix("http://")
        return ["--listen", listen, "--peers", peers or ",".join(self.urls.values()), "--election-timeout", "300ms"]

    def serve(self, name: str, *more: str, peers: str | None = None) -> None:
        self._start(name, "serve", "--role", "master", *self.flags(name, peers), *more)

    def stop_all(self) -> None:
        """At once: a leader that is stopped with all the others would look for a successor among them."""
        for name in list(self.running):
            self.kill(name)

    def data(self, name: str) -> Path:
        return self.directory / name

    def stop(self, name: str) -> int:
        return self.kill(name, signal.SIGTERM)

    async def refused(self, name: str) -> str:
        """What a master says that does not start: the exit code is not 0, and it is over by itself."""
        before = len(self.log_of(name))
        self.serve(name)
        process = self.running[name]
        await until(lambda: process.poll() is not None)
        self.running.pop(name)
        assert process.returncode not in {0, None}
        return self.log_of(name)[before:]

    async def offline(self, verb: str, name: str, *more: str, peers: str | None = None) -> tuple[int, str]:
        """A verb on the machine of a master that does not run: exit code and what it says."""
        arguments = ["--data-dir", str(self.data(name)), *self.flags(name, peers), *more]
        code, out, err = await self.cli("cluster", verb, *arguments)
        return code, (out + err).decode()


class Asking:
    """HTTP to the masters of a group."""

    def __init__(self, masters: Masters, session: aiohttp.ClientSession) -> None:
        self.masters, self.session = masters, session
        self.submitted: set[str] = set()

    async def cluster(self, name: str) -> dict[str, Any] | None:
        """What a master says; None while it says nothing."""
        try:
            async with self.session.get(self.masters.urls[name] + "/api/v1/cluster") as response:
                return dict(await response.json()) if response.status == 200 else None
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            return None

    async def leader(self) -> str:
        """The name of the master that leads, once all that run agree on one."""

        async def agreed() -> str | None:
            said = [await self.cluster(name) for name in self.masters.running]
            leaders = {one["leader_url"] if one else None for one in said}
            names = [name for name in self.masters.running if {self.masters.urls[name]} == leaders]
            return names[0] if names else None

        return str(await until(agreed))

    async def submit(self, count: int, *names: str) -> None:
        """Runs, one after the other, each at the next of these masters; every one is acknowledged in the end."""
        names = names or tuple(self.masters.running)
        for n in range(count):
            url = self.masters.urls[names[n % len(names)]] + "/api/v1/runs"
            self.submitted.add(await self._submitted(url, {"Idempotency-Key": wire.new_id()}))

    async def _submitted(self, url: str, headers: dict[str, str]) -> str:
        """As a client does: 503 means to ask again."""

        async def asked() -> str | None:
            async with self.session.post(url, data=HELLO_YAML.encode(), headers=headers) as response:
                run = await response.json()
                assert response.status in {200, 201, 503}, run
                return None if response.status == 503 else str(run["id"])

        return str(await until(asked, 10.0))

    @asynccontextmanager
    async def steady_load(self, *names: str) -> AsyncIterator[None]:
        """Runs are submitted at these masters all the while, and every one is acknowledged."""

        async def go_on() -> None:
            while True:
                await self.submit(1, *names)

        async with asyncio.TaskGroup() as group:
            loading = group.create_task(go_on())
            yield
            loading.cancel()

    async def voting(self, voters: int) -> dict[str, Any]:
        """The leader's view, once so many vote, all who run among them, and nobody learns."""

        async def promoted() -> dict[str, Any] | None:
            said = [await self.cluster(name) for name in self.masters.running]
            leading = [one for one in said if one and one["node"] == one["leader"]]
            voting = [master["id"] for one in leading for master in one["masters"] if master["is_voter"]]
            is_whole = len(voting) == voters and len(leading[0]["masters"]) == voters
            return leading[0] if is_whole and all(one and one["node"] in voting for one in said) else None

        return dict(await until(promoted))

    async def settled(self, voters: int) -> dict[str, Any]:
        """The leader's view, once so many vote, nobody learns, and all who run have equal states at an equal index."""

        async def equal() -> dict[str, Any] | None:
            view = await self.voting(voters)
            said = [await self.cluster(name) for name in self.masters.running]
            places = {one and (one["applied_index"], one["digest"], one["leader"]) for one in said}
            return view if len(places) == 1 and None not in places else None

        return dict(await until(equal))

    async def run_ids(self, name: str) -> set[str]:
        """Every run that the state of this master holds."""
        found: set[str] = set()
        cursor = ""
        while True:
            url = f"{self.masters.urls[name]}/api/v1/runs?stale=1&limit=200" + (f"&cursor={cursor}" if cursor else "")
            async with self.session.get(url) as response:
                page = await response.json()
            found |= {run["id"] for run in page["items"]}
            if not (cursor := page["next"]):
                return found

    async def all_is_there(self, voters: int = 3) -> None:
        """Equal states, and in each of them every run that was acknowledged."""
        await self.settled(voters)
        for name in self.masters.running:
            assert self.submitted <= await self.run_ids(name), name


@asynccontextmanager
async def asking(masters: Masters) -> AsyncIterator[Asking]:
    """HTTP with the token; shows what the masters logged when the test fails."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    connector = aiohttp.TCPConnector(force_close=True)
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
        try:
            yield Asking(masters, session)
        except BaseException:
            for name in masters.urls:
                if (masters.directory / f"{name}.log").exists():
                    print(f"--- {name}\n{masters.log_of(name)[-4000:]}")
            raise


@asynccontextmanager
async def a_group(directory: Path, count: int = 3, **environ: str) -> AsyncIterator[tuple[Masters, Asking]]:
    """So many masters that have founded a group and have a leader."""
    masters = Masters(directory, count)
    masters.environ |= environ
    try:
        for name in masters.founders:
            masters.serve(name)
        async with asking(masters) as ask:
            await ask.settled(count)
            yield masters, ask
    finally:
        masters.stop_all()
