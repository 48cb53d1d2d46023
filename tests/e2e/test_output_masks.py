"""Secrets in what steps print: never stored by a master, never shown, wherever the stream is cut and however spelled.

The secrets are passwords of registries. The document of the run holds them, so the state of the masters, their log and
the agent's journal, where the assignment is, do too, and are not looked into; everything else is.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from pistage.master.sealed import SealedFile
from tests.chaos.group import Group, until
from tests.e2e.output_places import IS_FULL, WHERE, a_place, assert_exact, submit, witness_of
from tests.e2e.printing import WITNESS, Program
from tests.e2e.processes import ended
from tests.master.fakes import Api

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PASSWORD = "S3cret/+pass word&'quoted'~ü"
KEY = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0B/+AQEF==\n-----END KEY-----"
#: What is printed, and must be a mask.
SPELLINGS = {
    "plain": PASSWORD,
    "several lines": KEY,
    "one of the lines": KEY.splitlines()[2],
    "base64": base64.b64encode(PASSWORD.encode()).decode(),
    "base64 of several lines": base64.b64encode(KEY.encode()).decode(),
    "in a URL": quote(PASSWORD, safe=""),
    "JSON": json.dumps(KEY)[1:-1],
}
_PAUSE_S = 0.03  # longer than a piece of output waits for company
_HELPERS = """
told() { printf %s "$1" | tr A-Za-z N-ZA-Mn-za-m; }
split() { printf %s "$1" | head -c $2; sleep $3; printf %s "$1" | tail -c +$(($2+1)); }
"""


def hidden(text: str) -> str:
    """In a script, so that only what it prints holds the secret."""
    return f'"$(told {shlex.quote(codecs.encode(text, "rot13"))})"'


def at_every_border(name: str, text: str) -> Program:
    """A spelling, cut in two at every place; and once on the other stream."""
    size = len(text.encode())
    script = f"""{_HELPERS}k=0; while [ $k -le {size} ]; do
split {hidden(text)} $k {_PAUSE_S}; echo " cut at $k"; k=$((k+1)); done
printf 'whole %s' {hidden(text)} >&2"""
    return Program(
        title=name,
        script=script,
        stdout=lambda: (b"*** cut at %d\n" % k for k in range(size + 1)),
        stderr=lambda: (b"whole ***",),
    )


def over_a_kill() -> Program:
    """The first half of the secret, a while in which the agent is killed and started, the second half."""
    half = len(PASSWORD) // 2
    script = f"""{_HELPERS}printf 'it is %s' {hidden(PASSWORD[:half])}; echo >{WITNESS}; sleep 4
printf '%s.\\n' {hidden(PASSWORD[half:])}"""
    return Program(title="Over a kill", script=script, stdout=lambda: (b"it is ***.\n",))


def definition(program: Program, where: str) -> dict[str, Any]:
    """A step for each secret; the second one prints."""
    both = {"image": "busybox", "entryPoint": ["/bin/sh", "-ec"]}
    first = both | {"name": "first", "command": ["true"], "authConfig": {"username": "u", "password": PASSWORD}}
    second = both | {"name": "second", "command": [program.script], "authConfig": {"username": "u", "password": KEY}}
    if where == "shared":
        second["retry"] = 1  # a command that may be tried again is in a container that stays
    return {"name": program.title, "retry": 0, "pipelineTasks": [{"name": "only", "steps": [first, second]}]}


@pytest.mark.parametrize("where", WHERE if IS_FULL else WHERE[1::2])
async def test_a_secret_is_masked_at_every_border_and_in_every_spelling(tmp_path: Path, where: str) -> None:
    async with a_place(tmp_path, where) as (group, api):
        programs = [at_every_border(name, text) for name, text in SPELLINGS.items()]
        run_ids = [await submit(api, definition(program, where)) for program in programs]
        runs = [await ended(api, run_id) for run_id in run_ids]
        assert {run["state"] for run in runs} == {"succeeded"}, runs

        async def look() -> None:
            for run, program in zip(runs, programs, strict=True):
                assert await shown(api, run["id"]) == []
                await assert_exact(group, api, run, program)
            assert await asyncio.to_thread(stored, group) == []

        await look()
        if IS_FULL or where == "host":
            await until(lambda: len(list(sealed_in(group))) == len(runs), 60.0)
            await look()


@pytest.mark.engine
@pytest.mark.parametrize("where", ["own", "shared"])
async def test_a_secret_is_masked_although_its_halves_are_read_by_two_agents(tmp_path: Path, where: str) -> None:
    async with a_place(tmp_path, where) as (group, api):
        program = over_a_kill()
        run_id = await submit(api, definition(program, where))
        (await until(lambda: witness_of(run_id), 30.0)).close()
        group.kill("a1")
        group.start("a1")
        run = await ended(api, run_id)
        assert run["state"] == "succeeded", run
        await assert_exact(group, api, run, program)
        assert await shown(api, run_id) + await asyncio.to_thread(stored, group) == []


# --- where they are looked for ---------------------------------------------------------------------------------------


def secrets_in(text: bytes) -> list[str]:
    """The names of the spellings, or of lines of them, that are in the text."""
    return [name for name, spelling in SPELLINGS.items() for line in spelling.splitlines() if line.encode() in text]


async def shown(api: Api, run_id: str) -> list[str]:
    """Where the API shows a secret."""
    found = []
    forms = ("application/octet-stream", "text/plain", "application/x-ndjson", "text/event-stream")
    asked = [(path, {}) for path in ("", "/plan", "/events", "/why")]
    asked += [("/logs", {"Accept": form}) for form in forms]
    asked += [("/logs?by=line", {"Accept": "application/x-ndjson"})]
    for path, headers in asked:
        async with api.session.get(f"{api.url}/api/v1/runs/{run_id}{path}", headers=headers) as response:
            assert response.status == 200, await response.text()
            found += [f"{path} {headers} shows {name}" for name in secrets_in(await response.read())]
    return found


def sealed_in(group: Group) -> Iterator[Path]:
    return (group.data_dir("m1") / "logs").glob("*/*.sealed")


def stored(group: Group) -> list[str]:
    """Which files of the master, and of the agent, hold a secret."""
    found = []
    for path in group.directory.rglob("*"):
        if path.is_file() and not _holds_the_document(path.relative_to(group.directory).parts):
            found += [f"{path} holds {name}" for name in secrets_in(path.read_bytes())]
    for path in sealed_in(group):
        sealed = SealedFile.open(path)
        for step, stream in sealed.streams:
            found += [f"{path} holds {name}" for name in secrets_in(b"".join(sealed.blocks(step, stream)))]
    return found


def _holds_the_document(parts: Sequence[str]) -> bool:
    return parts[1:2] in (("state",), ("journal",)) or parts[-1].startswith("raft.db")
