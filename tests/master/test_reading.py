"""Reading of output: every way of asking for it gives what going through all of it gives."""

import json
import random
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pistage.master.reading import search
from tests.master import printed
from tests.master.fakes import Api, FakeAgent, a_master, an_agent
from tests.master.printed import BEGIN, TASKS, Frame, Run, Told, Wanted

JSON = {"Accept": "application/x-ndjson"}
BYTES = {"Accept": "application/octet-stream"}


@asynccontextmanager
async def printed_runs(directory: Path, *runs: Sequence[Frame]) -> AsyncIterator[tuple[Api, list[Run], FakeAgent]]:
    async with a_master(directory) as api, an_agent(api) as (agent, _):
        yield api, [await printed.a_printed_run(api, agent, frames) for frames in runs], agent


async def get(api: Api, run_id: str, wanted: Wanted, headers: dict[str, str]) -> bytes:
    async with api.session.get(f"{api.url}/api/v1/runs/{run_id}/logs", params=wanted, headers=headers) as response:
        assert response.status == 200, await response.text()
        return await response.read()


async def get_json(api: Api, run_id: str, wanted: Wanted) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await get(api, run_id, wanted, JSON)).splitlines()]


def some_selection(chance: random.Random) -> Wanted:
    wanted: Wanted = {}
    if chance.random() < 0.4:
        wanted["task"] = chance.choice(TASKS)
    if chance.random() < 0.3:
        wanted["step"] = chance.choice(["1", "2"])
    if chance.random() < 0.3:
        wanted["stream"] = chance.choice(["stdout", "stderr"])
    return wanted


def some_times(chance: random.Random, frames: Sequence[Frame]) -> Wanted:
    wanted: Wanted = {}
    span = len(frames) * 100
    if chance.random() < 0.4:
        wanted["since"] = BEGIN + chance.randint(-4000, span)
    if chance.random() < 0.4:
        wanted["until"] = BEGIN + chance.randint(0, span + 4000)
    return wanted


def some_place(chance: random.Random, most: int) -> Wanted:
    wanted: Wanted = {}
    if chance.random() < 0.8:
        wanted["offset"] = chance.randint(-most, most)
    if chance.random() < 0.5:
        wanted["limit"] = chance.choice([1, 2, chance.randint(1, most + 1)])
    return wanted


def seen_piece(piece: dict[str, Any]) -> tuple[Any, ...]:
    common = (piece["number"], piece["task"], piece["step"], piece["stream"], piece["offset"])
    if piece["kind"] == "gap":
        return (*common, piece["reason"], piece["missing"])
    return (*common, printed.bytes_of(piece))


def expected_piece(frame: Frame) -> tuple[Any, ...]:
    common = (frame.number, frame.task, frame.step, printed.STREAMS[frame.stream], frame.offset)
    return (*common, frame.reason, frame.missing or None) if frame.reason else (*common, frame.data)


def seen_line(line: dict[str, Any]) -> tuple[Any, ...]:
    if line["kind"] == "gap":
        return seen_piece(line)
    return line["line"], line["task"], line["step"], line["stream"], line["text"], line.get("is_open", False)


def expected_line(told: Told) -> tuple[Any, ...]:
    if told.is_gap:
        return expected_piece(told.frame)
    frame, text = told.frame, told.data.decode("utf-8", "replace")
    return told.count, frame.task, frame.step, printed.STREAMS[frame.stream], text, told.is_open


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
async def test_every_way_of_asking_gives_what_going_through_all_of_it_gives(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    # Blocks are of 1,024 records: one run has none, one has a few.
    runs = [printed.some_frames(chance, chance.choice([1, 40])), printed.some_frames(chance, 2_500)]
    async with printed_runs(tmp_path, *runs) as (api, made, _):
        for _ in range(150):
            await ask_at_random(api, chance.choice(made), chance)


async def ask_at_random(api: Api, run: Run, chance: random.Random) -> None:
    frames, run_id = run.frames, run.id
    size = sum(len(frame.data) for frame in frames)
    newlines = sum(frame.data.count(b"\n") for frame in frames)
    wanted = some_selection(chance) | some_times(chance, frames)
    match chance.randrange(5):
        case 0:
            wanted |= some_place(chance, size)
            assert await get(api, run_id, wanted, BYTES) == printed.raw(frames, wanted), wanted
        case 1:
            wanted |= {"by": "line"} | some_place(chance, newlines)
            wanted |= {"offset": abs(wanted.get("offset", 0))}
            for time in ("since", "until"):
                wanted.pop(time, None)
            assert await get(api, run_id, wanted, BYTES) == printed.raw(frames, wanted), wanted
        case 2:
            wanted |= some_place(chance, len(frames)) | ({"order": "time"} if chance.random() < 0.3 else {})
            found = [seen_piece(piece) for piece in await get_json(api, run_id, wanted)]
            assert found == [expected_piece(frame) for frame in printed.pieces(frames, wanted)], wanted
        case 3:
            wanted |= {"by": "line"} | some_place(chance, newlines)
            found = [seen_line(line) for line in await get_json(api, run_id, wanted)]
            assert found == [expected_line(told) for told in printed.lines(run, wanted)], wanted
        case 4:
            wanted |= {"by": "line", "timestamps": "1"} | some_place(chance, newlines)
            shown = (await get(api, run_id, wanted, {})).decode()
            assert shown == printed.text(printed.lines(run, wanted), stamp), wanted


SEARCHED = (
    ("needle", False), ("a line", False), ("é", False), ("x" * 290, False), ("0%", False), ("nothing", False),
    ("^$", True), ("^needle", True), ("hay$", True), ("^[a-z ]*$", True), ("(red|le)[a-z]*50%", True), ("", True),
    (r"\Aneedle", True), ("x{250}needle", True),
)  # fmt: skip


def matcher(wanted: Wanted) -> Callable[[bytes], bool]:
    """By Python's own engine, which knows these expressions, too; to RE2 a byte that is no UTF-8 is no character."""
    text, flags = wanted["grep"].encode(), re.IGNORECASE if "ignore_case" in wanted else 0
    expression = re.compile(text if "regex" in wanted else re.escape(text), flags)
    return lambda line: expression.search(line) is not None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
async def test_a_search_finds_what_looking_at_each_line_finds(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    runs = [printed.some_frames(chance, 40), printed.some_frames(chance, 2_500)]
    if seed % 2:  # units, parts and batches end everywhere
        monkeypatch.setattr(search, "_UNIT_BYTES", 700)
        monkeypatch.setattr(search, "_AT_ONCE_BYTES", 64 * 300)
        monkeypatch.setattr(search, "_FOUND_AT_ONCE", 40)
    async with printed_runs(tmp_path, *runs) as (api, made, _):
        for _ in range(120):
            run = chance.choice(made)
            newlines = sum(frame.data.count(b"\n") for frame in run.frames)
            text, is_regex = chance.choice(SEARCHED)
            wanted = some_selection(chance) | some_times(chance, run.frames) | some_place(chance, newlines)
            wanted |= {"by": "line", "grep": text.upper() if (ignores_case := chance.random() < 0.3) else text}
            wanted |= ({"regex": "1"} if is_regex else {}) | ({"ignore_case": "1"} if ignores_case else {})
            if ignores_case and not re.fullmatch(r"[ -\[\]-~]*", text):
                continue  # \A is not \a, and bytes have no É
            found = [seen_line(line) for line in await get_json(api, run.id, wanted)]
            told = printed.lines(run, wanted, has_line=matcher(wanted))
            assert found == [expected_line(one) for one in told], wanted


def stamp(at: int) -> str:
    from pistage.master.api import views

    return str(views.at(at))
