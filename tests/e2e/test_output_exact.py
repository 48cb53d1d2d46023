"""What steps print is read back to the byte, whatever they print, however they end, and in whatever they run."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from pistage.agent.runtimes.sandbox import find_wrapper
from pistage.errors import PistageError
from tests.chaos.group import Group, Shape, a_group
from tests.e2e import printing
from tests.e2e.printing import Program
from tests.e2e.processes import ended, until
from tests.e2e.readback import pieces_of, step_of, wrong_as_reported, wrong_in_files, wrong_when_read
from tests.engine import require_engine
from tests.master.fakes import Api

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MB = 1_000_000
#: In full every kind of gigabyte in every runtime, for as long as that takes.
IS_FULL = os.environ.get("PISTAGE_TEST_OUTPUT") == "full"
PROGRAMS = [
    printing.text(8 * MB),
    printing.one_line(8 * MB),
    printing.noise(8 * MB),
    printing.empty_lines(MB),
    printing.both(10_000),
    printing.nothing(),
    printing.last_words(),
]
RUNTIMES = {
    "own": ("--runtime", "docker"),
    "shared": ("--runtime", "docker"),
    "sandbox": ("--runtime", "sandbox", "--ignore-images"),
    "host": ("--runtime", "host", "--allow-host-runtime", "--ignore-images"),
}
_ENGINE = {"own", "shared"}
WHERE = [pytest.param(where, marks=pytest.mark.engine if where in _ENGINE else ()) for where in RUNTIMES]
GIGABYTES = [
    pytest.param(kind, where, marks=pytest.mark.engine if where in _ENGINE else ())
    for kind in ("text", "one_line", "noise")
    for where in RUNTIMES
    if IS_FULL or (kind, where) in {("text", "shared"), ("one_line", "host")}
]


@asynccontextmanager
async def a_place(directory: Path, where: str) -> AsyncIterator[tuple[Group, Api]]:
    """A master, and an agent of that runtime."""
    await _require(directory, where)
    shape = Shape(
        masters=1, agents=1, runtimes={"a1": RUNTIMES[where]},
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
    assert wrong + await asyncio.to_thread(wrong_in_files, directories, run, program) == []


async def print_all(directory: Path, where: str, programs: Sequence[Program], timeout_s: float) -> None:
    """All at once; each is read back."""
    async with a_place(directory, where) as (group, api):
        run_ids = [await submit(api, definition_of(program, where)) for program in programs]
        for run_id, program in zip(run_ids, programs, strict=True):
            run = await ended(api, run_id, timeout_s)
            assert run["state"] == "succeeded", run
            await assert_exact(group, api, run, program)


@pytest.mark.parametrize(("kind", "where"), GIGABYTES)
async def test_a_gigabyte_is_read_back_to_the_byte(tmp_path: Path, kind: str, where: str) -> None:
    program: Program = getattr(printing, kind)(1000 * MB)
    await print_all(tmp_path, where, [program], 600)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("where", WHERE)
async def test_what_steps_print_is_read_back_to_the_byte(tmp_path: Path, where: str) -> None:
    await print_all(tmp_path, where, PROGRAMS, 60)


@pytest.mark.parametrize("where", WHERE)
async def test_what_a_step_that_is_killed_has_printed_is_there_to_the_last_byte(tmp_path: Path, where: str) -> None:
    async with a_place(tmp_path, where) as (group, api):
        program = printing.until_killed()
        cancelled = await submit(api, definition_of(program, where))
        late = await submit(api, definition_of(program, where, timeout="4s"))
        # Before anybody can have read what it has printed, or most of it.
        (await until(lambda: witness_of(cancelled))).close()
        await api.call("POST", f"/api/v1/runs/{cancelled}/cancel")
        await until_killed_while_printing(group, api, where)
        for run_id, state in ((cancelled, "cancelled"), (late, "failed")):
            run = await ended(api, run_id)
            assert run["state"] == state, run
            await assert_exact(group, api, run, program)


async def until_killed_while_printing(group: Group, api: Api, where: str) -> None:
    """To the last line that it noted after it had printed it."""
    run_id = await submit(api, definition_of(Program(title="Endless", script=printing.ENDLESS), where))
    with await until(lambda: witness_of(run_id, bytes_min=10_000)) as witness:
        await api.call("POST", f"/api/v1/runs/{run_id}/cancel")
        run = await ended(api, run_id)
        noted = int(witness.read().split()[-1])
    read = b"".join([piece async for piece in pieces_of(api.session, api.url, run_id, step_of(run)["id"], "stdout")])
    count = read.count(b"\n")
    print(f"{where}: {count} lines, {noted} noted")
    assert read == printing.endless_lines(count)
    assert count in {noted, noted + 1}
    await assert_exact(group, api, run, Program(title="Endless", script="", stdout=lambda: (read,)))


def witness_of(run_id: str, bytes_min: int = 1) -> BinaryIO | None:
    """The witness of the run's step, once it holds so much: opened, for it is removed with what the step runs in."""
    for directory in Path("/proc").iterdir():  # a container's directory is reached through a process that runs there
        if directory.name.isdigit():
            with suppress(OSError):
                if b"PISTAGE_RUN_ID=" + run_id.encode() in (directory / "environ").read_bytes().split(b"\0"):
                    witness = (directory / "cwd" / printing.WITNESS).open("rb")
                    if os.fstat(witness.fileno()).st_size >= bytes_min:
                        return witness
                    witness.close()
    return None
