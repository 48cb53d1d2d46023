"""A cluster inside this process: a master and, where work is to be done, an agent; the same code as `serve`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from pistage.cli import groups, probes
from pistage.cli.home import Endpoint, Home
from pistage.config import AgentConfig, MasterConfig, load
from pistage.errors import Code, PistageError

Runtime = Literal["docker", "sandbox", "host"]
EPHEMERAL = "127.0.0.1:0"
#: Master and agent stop (Ctrl-Z) and sleep (a laptop) together, so neither has reason to give up the other's work.
_LEASE_S = 86400.0
#: For notices of what has just ended. What is to be tried again later is left to the next one on this directory.
_TELLING_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How an embedded agent runs steps, and what a person must know about it."""

    runtime: Runtime
    ignores_images: bool
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster that runs in this process."""

    url: str
    token: str


@asynccontextmanager
async def cluster(
    home: Home, *, choice: Choice | None, listen: str = EPHEMERAL, token: str | None = None, is_lasting: bool = False
) -> AsyncIterator[Cluster]:
    """A cluster on `home`, whose lock the caller holds; without a `choice` of runtime there is no agent."""
    from pistage.master.service import Master

    known = home.token(token)
    settings = MasterConfig(
        data_dir=home.master_dir, listen=listen, lease=_LEASE_S, notice_allow=_notice_allow(os.environ)
    )
    async with Master(settings, token=known) as master:
        endpoint = Endpoint(
            url=master.url,
            pid=os.getpid(),
            token_file=str(home.token_file),
            has_agent=choice is not None,
            is_lasting=is_lasting,
        )
        async with _agent(home, master.url, known, choice):
            home.publish(endpoint)
            try:
                yield Cluster(url=master.url, token=known)
                await master.until_told(_TELLING_S)
            finally:
                home.withdraw()


def _notice_allow(environ: Mapping[str, str]) -> tuple[str, ...]:
    """From the environment: `dev` and `run` have no flag for it."""
    key = "PISTAGE_NOTICE_ALLOW"
    return load(MasterConfig, environ={key: environ[key]} if key in environ else {}).settings.notice_allow


@asynccontextmanager
async def _agent(home: Home, url: str, token: str, choice: Choice | None) -> AsyncIterator[None]:
    """An agent beside what happens inside; an error of either ends both and leaves as itself."""
    if choice is None:
        yield
        return
    from pistage.agent.service import Agent

    settings = AgentConfig(
        data_dir=home.agent_dir,
        masters=(url,),
        runtime=choice.runtime,
        ignore_images=choice.ignores_images,
        allow_host_runtime=choice.runtime == "host",
    )
    agent = Agent(settings, token=token)
    failure: Exception | None = None
    async with groups.one_error(), asyncio.TaskGroup() as group:
        group.create_task(agent.run(), name="agent")
        try:
            yield
        except Exception as error:  # it leaves below, by itself: a task group would wrap it
            failure = error
        finally:
            agent.request_stop()
    if failure is not None:
        raise failure


async def choose_runtime(asked: str | None, *, may_wait: bool = False) -> Choice:
    """The runtime that was asked for; else docker where an engine answers, else the sandbox.

    PistageError `unavailable` says what to do where neither works, or where docker was asked for and no engine answers,
    unless the cluster `may_wait` for one.
    """
    if asked == "docker" and not may_wait and not (engine := await probes.probe_engine()).is_usable:
        raise PistageError(
            Code.UNAVAILABLE,
            f"--runtime docker: {engine.reason}",
            hint="start a Docker engine or set DOCKER_HOST, or leave --runtime out; `pistage doctor` says more",
        )
    if asked is not None:
        assert asked in {"docker", "sandbox", "host"}
        return Choice(runtime=asked, ignores_images=asked != "docker", note=_note(asked, ""))  # type: ignore[arg-type]
    engine = await probes.probe_engine()
    if engine.is_usable:
        return Choice(runtime="docker", ignores_images=False)
    sandbox = await probes.probe_sandbox()
    if sandbox.is_usable:
        return Choice(runtime="sandbox", ignores_images=True, note=_note("sandbox", engine.reason))
    raise PistageError(
        Code.UNAVAILABLE,
        f"nothing here can run a step: no engine ({engine.reason}) and no sandbox ({sandbox.reason})",
        hint="start a Docker engine, or install bubblewrap; `pistage doctor` says more",
    )


def _note(runtime: str, reason: str) -> str:
    because = f" ({reason})" if reason else ""
    match runtime:
        case "sandbox":
            return f"no containers{because}: steps run in a sandbox of this machine, their images are NOT used"
        case "host":
            return "no isolation: steps run as plain processes of yours, their images are NOT used"
        case _:
            return ""
