"""The README names every verb, option family, configuration key, exit code, route and room there is."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from pistage.cli.root import CLOSED_PIPE, INTERRUPTED, VERBS, cli
from pistage.config import AgentConfig, ClientConfig, MasterConfig
from pistage.errors import TABLE
from pistage.master.api import routes
from tests.test_house import MAY_IMPORT

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def tables() -> dict[str, list[list[str]]]:
    """The rows of each table, by the heading of its first column; code marks and escapes taken off."""
    found: dict[str, list[list[str]]] = {}
    for block in re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        heading, _, *rows = [[cell.strip().replace("`", "").replace("\\", "") for cell in line] for line in lines]
        found.setdefault(heading[0] + ("/of" if heading[1] == "of" else ""), []).extend(rows)
    return found


TABLES = tables()


def commands() -> Iterator[str]:
    for name in VERBS:
        command = cli.get_command(click.Context(cli), name)
        if isinstance(command, click.Group):
            yield from (f"{name} {sub}" for sub in command.commands)
        else:
            yield name


@pytest.mark.parametrize("command", list(commands()))
def test_every_verb_is_documented(command: str) -> None:
    assert any(re.match(rf"pistage {command}( |$)", cell) for cell, _ in TABLES["verb"])


@pytest.mark.parametrize(
    ("section", "owner"), [(MasterConfig, "master"), (AgentConfig, "agent"), (ClientConfig, "client")]
)
def test_every_configuration_key_is_documented_where_it_belongs(section: type[BaseModel], owner: str) -> None:
    documented = {key: of for key, of, _ in TABLES["key/of"]}
    for key in section.model_fields:
        assert documented.get(key) in {owner, "all"}, f"{key} of {owner}"


def test_every_route_is_documented_and_no_other() -> None:
    source = Path(routes.__file__).read_text(encoding="utf-8")
    written = re.findall(r'Route\("([A-Z]+)", ([\w"/{}. +]+),', source)
    known = {f"{method} {eval(path, vars(routes))}" for method, path in written}
    documented = {route for route, _ in TABLES["route"]}
    assert documented == known


def test_every_exit_code_is_documented() -> None:
    codes = {str(row.exit) for row in TABLE.values()} | {"0", "1", "3", str(INTERRUPTED), str(CLOSED_PIPE)}
    assert codes <= {code for code, _ in TABLES["exit code"]}


def test_the_room_table_is_the_one_that_is_kept() -> None:
    documented = {room: allowed for room, _, allowed in TABLES["room"]}
    for room, allowed in MAY_IMPORT.items():
        if room.startswith("__"):  # the package itself and its door
            continue
        said = documented[room]
        if said == "all but raft":
            assert allowed >= set(MAY_IMPORT) - {"raft", "cli", "__main__", "__init__"}
        else:
            assert set(said.split(", ")) - {"nothing of ours"} == allowed, room


def test_the_files_it_names_are_there() -> None:
    root = Path(__file__).parent.parent
    for path in set(re.findall(r"(?:conf|scripts|docs|tests)/[\w./-]+", README)):
        assert (root / path.rstrip(".")).exists(), path
