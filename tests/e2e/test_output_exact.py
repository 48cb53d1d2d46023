"""What steps print is read back to the byte, whatever they print, however they end, and in whatever they run."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from pistage.core import limits
from tests.chaos.group import PISTAGE, Group
from tests.e2e import printing
from tests.e2e.output_places import (
    IS_FULL,
    RUNTIMES,
    WHERE,
    a_place,
    assert_exact,
    definition_of,
    marks_of,
    submit,
    witness_of,
)
from tests.e2e.printing import Program, Sum, printed_by, sum_of
from tests.e2e.processes import ended, until
from tests.e2e.readback import (
    STREAMS,
    gaps_in,
    pieces_of,
    step_of,
    wrong_as_reported,
    wrong_but_for_gaps,
    wrong_when_shown,
)
from tests.master.fakes import Api

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MB = 1_000_000
PROGRAMS = [
    printing.text(8 * MB),
    printing.one_line(8 * MB),
    printing.noise(8 * MB),
    printing.empty_lines(MB),
    printing.both(10_000),
    printing.nothing(),
    printing.last_words(),
]
GIGABYTES = [
    pytest.param(kind, where, marks=marks_of(where))
    for kind in ("text", "one_line", "noise")
    for where in RUNTIMES
    if IS_FULL or (kind, where) == ("text", "shared")
]


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


async def test_what_the_command_line_writes_to_a_pipe_is_what_was_printed(tmp_path: Path) -> None:
    async with a_place(tmp_path, "host") as (group, api):
        programs = [printing.noise(4 * MB), printing.one_line(4 * MB), printing.both(10_000), printing.nothing()]
        run_ids = [await submit(api, program.own()) for program in programs]
        for run_id, program in zip(run_ids, programs, strict=True):
            assert (await ended(api, run_id))["state"] == "succeeded"
            for stream in STREAMS:
                assert await piped(group, "logs", run_id, "--stream", stream) == printed_by(program, stream)


async def piped(group: Group, *arguments: str) -> Sum:
    """What a verb writes to its standard output."""
    process = await asyncio.create_subprocess_exec(
        *PISTAGE, *arguments, "--server", group.urls["m1"], env=group.environ,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return sum_of([out])


@pytest.mark.parametrize("where", WHERE)
async def test_of_more_than_is_kept_the_head_and_the_tail_are_there(tmp_path: Path, where: str) -> None:
    head = 2 * limits.MIB
    async with a_place(tmp_path, where, "--step-log-max", str(head)) as (group, api):
        programs = [printing.text(8 * MB), printing.noise(8 * MB)]
        run_ids = [await submit(api, definition_of(program, where)) for program in programs]
        for run_id, program in zip(run_ids, programs, strict=True):
            run = await ended(api, run_id)
            assert run["state"] == "succeeded", run
            directory = group.data_dir("m1") / "logs" / run_id
            assert wrong_but_for_gaps({"m1": directory}, run, program, "limit") + wrong_as_reported(run, program) == []
            gaps = gaps_in(directory, run)
            assert await wrong_when_shown(api.session, api.url, run, gaps) == []
            *_, last = gaps["stdout"]
            kept = printed_by(program, "stdout").length - last.length
            assert head - limits.FRAME_BYTES_MAX <= last.place <= head
            assert kept - last.place == limits.LOG_TAIL_BYTES_MAX


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
