"""The verbs `agent ls|show|drain|resume`."""

from __future__ import annotations

from typing import Any

import click

from pistage.cli import groups, options, output
from pistage.cli.connect import connect
from pistage.client import Agent, Client
from pistage.config import ClientConfig, Config
from pistage.errors import Code, PistageError


@click.group("agent", short_help="List, show, drain and resume agents.")
def agent_verb() -> None:
    """List, show, drain and resume agents. An agent is named by its name, its id, or a prefix of the id."""


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
        "RUNTIMES": lambda agent: ",".join(agent.get("runtimes") or []),
        "SLOTS": lambda agent: _of(agent, "slots"),
        "CPUS": lambda agent: _of(agent, "cpus_milli", lambda milli: f"{milli / 1000:g}"),
        "MEMORY": lambda agent: _of(agent, "memory_bytes", output.size),
        "LABELS": lambda agent: ",".join(f"{key}={value}" for key, value in (agent.get("labels") or {}).items()) or "-",
        "SEEN": output.age_of("last_seen"),
        "ID": lambda agent: str(agent["id"]),
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
@options.client_options
def drain_agent(*, name: str, config: Config[ClientConfig]) -> None:
    """Give an agent no new work; what it runs goes on."""
    groups.run(_set_drain(config, name, is_draining=True))


@agent_verb.command("resume")
@click.argument("name")
@options.client_options
def resume_agent(*, name: str, config: Config[ClientConfig]) -> None:
    """Let a drained agent take work again."""
    groups.run(_set_drain(config, name, is_draining=False))


async def _set_drain(config: Config[ClientConfig], name: str, *, is_draining: bool) -> None:
    async with connect(config) as connection:
        agent = await _find(connection.client, name)
        await connection.client.set_agent_drain(agent["id"], is_draining=is_draining)
    output.say(f"{agent['name']}: {'takes no new work' if is_draining else 'takes work again'}")


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
    if agent.get("is_draining"):
        return f"{agent.get('state', '')} draining".strip()
    return str(agent.get("state") or ("connected" if agent.get("is_connected") else "gone"))


def _of(agent: Any, key: str, text: Any = str) -> str:
    """ "2/8": what is used of what there is."""
    capacity, used = agent.get("capacity") or {}, agent.get("used") or {}
    return f"{text(used.get(key, 0))}/{text(capacity[key])}" if key in capacity else "-"
