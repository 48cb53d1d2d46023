"""Where the tests of output run steps: in a container of their own or a shared one, in a sandbox, on the host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import pytest

from pistage.agent.runtimes.sandbox import find_wrapper
from pistage.errors import PistageError
from tests.chaos.group import Group, Shape, a_group
from tests.e2e.printing import WITNESS, Program
from tests.e2e.readback import wrong_as_reported, wrong_in_files, wrong_when_read
from tests.engine import require_engine
from tests.master.fakes import Api

#: Every kind of output in every runtime, a gigabyte too, for as long as that takes.
IS_FULL: Final = os.environ.get("PISTAGE_TEST_OUTPUT") == "full"
RUNTIMES: Final = {
    "own": ("--runtime", "docker"),
    "shared": ("--runtime", "docker"),
    "sandbox": ("--runtime", "sandbox", "--ignore-images"),
    "host": ("--runtime", "host", "--allow-host-runtime", "--ignore-images"),
}
_ENGINE: Final = {"own", "shared"}


def marks_of(where: str) -> tuple[pytest.MarkDecorator, ...]:
    """What a test there needs."""
    return (pytest.mark.engine,) if where in _ENGINE else ()


WHERE: Final = [pytest.param(where, marks=marks_of(where)) for where in RUNTIMES]


@asynccontextmanager
async def a_place(directory: Path, where: str, *master_flags: str) -> AsyncIterator[tuple[Group, Api]]:
    """A master, and an agent of that runtime."""
    await _require(directory, where)
    shape = Shape(
        masters=1, agents=1, runtimes={"a1": RUNTIMES[where]}, master_flags=master_flags,
        agent_flags=("--slots", "16", "--cpus", "8", "--memory", "4Gi", "--stop-grace", "1s"),
    )  # fmt: skip
    async with a_group(directory, shape) as group:
        assert group.http is not None
        try:
            yield group, Api(group.http, group.urls["m1"])
        except BaseException:
            for name in ("m1", "a1"):
                print(f"--- {name}\n{group.log_path(name).read_text(errors='replace')[-4000:]}")
            raise


async def _require(directory: Path, where: str) -> None:
    if where in _ENGINE:
        require_engine()
    elif where == "sandbox" and os.environ.get("CI") != "true":
        try:
            await find_wrapper(directory)
        except PistageError as complaint:
            pytest.skip(str(complaint))


def definition_of(program: Program, where: str, **more: Any) -> dict[str, Any]:
    return program.shared(**more) if where == "shared" else program.own(**more)


async def submit(api: Api, definition: dict[str, Any]) -> str:
    status, run = await api.call("POST", "/api/v1/runs", json=definition)
    assert status == 201, run
    return str(run["id"])


async def assert_exact(group: Group, api: Api, run: dict[str, Any], program: Program) -> None:
    directories = {"m1": group.data_dir("m1") / "logs" / run["id"]}
    wrong = wrong_as_reported(run, program) + await wrong_when_read(api.session, api.url, run, program)
    wrong += await asyncio.to_thread(wrong_in_files, directories, run, program)
    assert not wrong, wrong


def witness_of(run_id: str, bytes_min: int = 1) -> BinaryIO | None:
    """The witness of the run's step, once it holds so much: opened, for it is removed with what the step runs in."""
    for directory in Path("/proc").iterdir():  # a container's directory is reached through a process that runs there
        if directory.name.isdigit():
            with suppress(OSError):
                if b"PISTAGE_RUN_ID=" + run_id.encode() in (directory / "environ").read_bytes().split(b"\0"):
                    witness = (directory / "cwd" / WITNESS).open("rb")
                    if os.fstat(witness.fileno()).st_size >= bytes_min:
                        return witness
                    witness.close()
    return None
