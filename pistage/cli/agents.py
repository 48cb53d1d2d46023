"""The verbs `agent ls|show|drain|resume|rm`."""

from __future__ import annotations

import asyncio
import shlex
import time
from datetime import UTC, datetime
from typing import Any, Final

import click

from pistage.cli import groups, options, output
from pistage.cli.connect import connect
from pistage.client import Agent, Client
from pistage.config import ClientConfig, Config
from pistage.errors import Code, PistageError

_LOOK_EVERY_S: Final = 1.0


@click.group("agent", short_help="List, show, drain, resume and remove agents.")
def agent_verb() -> None:
    """List, show, drain, resume and remove agents. An agent is named by its name, its id, or a prefix of the id."""


@agent_verb.command("ls")
@output.format_option()
@options.client_options
def list_agents(*, fmt: str, config: Config[ClientConfig]) -> None:
    """List agents."""

    async def fetch() -> list[Agent]:
        async with connect(config) as connection:
            return list((await connection.client.fetch_agents())["items"])

    columns: dict[str, output.Cell] = {
        "NAME": lambda agent: str(agent["name"]),
        "STATE": _state,
        "VERSION": lambda agent: str(agent.get("version") or "-"),
        "RUNTIMES": lambda agent: ",".join(agent.get("runtimes") or []),
        "SLOTS": lambda agent: _of(agent, "slots"),
        "CPUS": lambda agent: _of(agent, "cpus_milli", lambda milli: f"{milli / 1000:g}"),
        "MEMORY": lambda agent: _of(agent, "memory_bytes", output.size),
        "GPUS": lambda agent: _of(agent, "gpus"),
        "LABELS": lambda agent: ",".join(f"{key}={value}" for key, value in (agent.get("labels") or {}).items()) or "-",
        "EPOCH": lambda agent: str(agent.get("epoch") or "-"),
        "SEEN": output.age_of("last_seen"),
        "ID": lambda agent: str(agent["id"]),
        "REASON": lambda agent: str(agent.get("reason") or ""),
    }
    output.print_items(groups.run(fetch()), columns, fmt=fmt)


@agent_verb.command("show")
@click.argument("name")
@output.format_option("yaml", "json")
@options.client_options
def show_agent(*, name: str, fmt: str, config: Config[ClientConfig]) -> None:
    """Print all that is known of an agent."""

    async def fetch() -> Agent:
        async with connect(config) as connection:
            return await _find(connection.client, name)

    output.print_value(groups.run(fetch()), fmt=fmt)


@agent_verb.command("drain")
@click.argument("name")
@options.duration_option(
    "--deadline", "deadline_s", "What it still runs after this long is stopped and tried elsewhere: 90s, 10m."
)
@click.option("--wait", "is_waiting", is_flag=True, help="Wait until it has no work.")
@options.duration_option("--timeout", "timeout_s", "With --wait: give up after this long.")
@options.client_options
def drain_agent(
    *, name: str, deadline_s: float | None, is_waiting: bool, timeout_s: float | None, config: Config[ClientConfig]
) -> None:
    """Give an agent no new work; what it runs goes on, or until the deadline.

    Exit code 8 says that it still had work when --timeout was over; it goes on draining.
    """
    if timeout_s is not None and not is_waiting:
        raise click.UsageError("--timeout is for --wait")
    groups.run(_drain(config, name, deadline_s, is_waiting=is_waiting, timeout_s=timeout_s))


async def _drain(
    config: Config[ClientConfig], name: str, deadline_s: float | None, *, is_waiting: bool, timeout_s: float | None
) -> None:
    async with connect(config) as connection:
        agent = await _find(connection.client, name)
        await connection.client.drain_agent(agent["id"], deadline_s=deadline_s)
        until = f"; what it runs is stopped in {output.duration(deadline_s)}" if deadline_s is not None else ""
        output.say(f"{agent['name']}: takes no new work{until}")
        if is_waiting:
            await _until_idle(connection.client, agent, timeout_s)
            output.say(f"{agent['name']}: has no work")


async def _until_idle(client: Client, agent: Agent, timeout_s: float | None) -> None:
    """Until nothing is reserved on it, or nobody knows it any more; `timeout` if that takes too long."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    told: int | None = None
    while True:
        agents: list[Agent] = (await client.fetch_agents())["items"]
        count = next((one["used"]["slots"] for one in agents if one["id"] == agent["id"]), 0)
        if not count:
            return
        if count != told:
            told = count
            output.say(f"{agent['name']}: {_tasks(count)} to go")
        left_s = _LOOK_EVERY_S if deadline is None else deadline - time.monotonic()
        if left_s <= 0:
            raise PistageError(
                Code.TIMEOUT,
                f"agent {agent['name']} still has {_tasks(count)}",
                hint=f"it goes on draining; pistage agent resume {shlex.quote(agent['name'])} takes that back",
            )
        await asyncio.sleep(min(_LOOK_EVERY_S, left_s))


@agent_verb.command("resume")
@click.argument("name")
@options.client_options
def resume_agent(*, name: str, config: Config[ClientConfig]) -> None:
    """Let a drained agent take work again."""

    async def resume() -> Agent:
        async with connect(config) as connection:
            agent = await _find(connection.client, name)
            return await connection.client.resume_agent(agent["id"])

    output.say(f"{groups.run(resume())['name']}: takes work again")


@agent_verb.command("rm")
@click.argument("name")
@click.option("--force", "is_forced", is_flag=True, help="Also one that is connected or at work: give its work up.")
@options.client_options
def remove_agent(*, name: str, is_forced: bool, config: Config[ClientConfig]) -> None:
    """Forget an agent that will not come back. One that is connected must be stopped first: it would register again.

    With --force what it runs is lost, and tried elsewhere as its retries allow.
    """

    async def remove() -> dict[str, Any]:
        async with connect(config) as connection:
            agent = await _find(connection.client, name)
            return await connection.client.remove_agent(agent["id"], is_forced=is_forced)

    removed = groups.run(remove())
    lost = len(removed["attempts_lost"])
    output.say(f"{removed['name']}: removed{f', {_tasks(lost)} given up' if lost else ''}")
    if removed["was_connected"]:
        output.say("it was connected: unless it is stopped, it registers again by itself", fg="yellow")


async def _find(client: Client, name: str) -> Agent:
    agents: list[Agent] = (await client.fetch_agents())["items"]
    found = [agent for agent in agents if name in {agent["id"], agent["name"]}]
    found = found or [agent for agent in agents if agent["id"].startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise PistageError(Code.CONFLICT, f"{len(found)} agents are called {name}", hint="use the id")
    raise PistageError(Code.NOT_FOUND, f"no agent {name}", hint="see `pistage agent ls`")


def _state(agent: Any) -> str:
    state = str(agent.get("state") or ("connected" if agent.get("is_connected") else "gone"))
    if state == "up" and agent.get("is_connected") is False:
        state = "up, not connected"
    if not agent.get("is_draining"):
        return state
    until = output.parse_time(agent.get("drain_until"))
    if until is None:
        return f"{state}, draining"
    left_s = (until - datetime.now(UTC)).total_seconds()
    return f"{state}, draining, {output.duration(left_s)} left" if left_s > 0 else f"{state}, draining, time is over"


def _tasks(count: int) -> str:
    return f"{count} task{'s' * (count != 1)}"


def _of(agent: Any, key: str, text: Any = str) -> str:
    """ "2/8": what is used of what there is."""
    capacity, used = agent.get("capacity") or {}, agent.get("used") or {}
    return f"{text(used.get(key, 0))}/{text(capacity[key])}" if key in capacity else "-"
