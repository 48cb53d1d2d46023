"""Follow one run to its end: its events and its output, on a terminal or off it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import aclosing, suppress
from typing import Any, Final, Protocol, Self

from pistage.cli import groups, output
from pistage.cli.plain import PlainScreen
from pistage.cli.progress import Progress
from pistage.cli.scriptscreen import ScriptScreen
from pistage.client import Chunk, Client, Event, Gap, Run, Selection
from pistage.errors import Code, PistageError
from pistage.owning import running

#: After the end of a run, a live screen shows output that is still on its way for this long.
_LAST_LINES_S: Final = 1.0
_LOOK_EVERY_S: Final = 1.5  # why a task waits is no event of the run, so it is asked for
_HOPELESS_S: Final = 3.0  # that no agent could ever take a task is believed after this long: one may be about to come
_DOUBT_S: Final = 1.0  # the same, of a cluster that was there before: its agents should be as well
_LOOK_FIRST_S: Final = 0.25
_AGENTS_NAMED_MAX: Final = 20
_ALONE: Final = "this cluster is the command's own and has one agent; see pistage serve and pistage dev"
EXIT_CODES: Final = {"succeeded": 0, "failed": 1, "lost": 1, "cancelled": 3}


class Screen(Protocol):
    """Where a run is shown."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def on_event(self, event: Event) -> None:
        """Something happened."""

    def on_chunk(self, chunk: Chunk) -> None:
        """A step printed."""

    def on_gap(self, gap: Gap) -> None:
        """A step printed what is not there."""

    def on_waiting(self, task: str, reason: str) -> None:
        """A task waits for a place, and why; told again when the reason has changed."""

    def on_end(self, run: Run) -> None:
        """The run is over and everything was shown."""


async def follow(
    client: Client,
    run: Run,
    *,
    is_plain: bool = False,
    has_output: bool = True,
    is_alone: bool = False,
    screen: ScriptScreen | None = None,
) -> Run:
    """Show the run until it is over, as runs are or on a `screen` of its own; the run as it ended.

    PistageError `unplaceable` where `is_alone`, which says that no agent will come but those there are, and none of
    them could ever take what waits.
    """
    progress = Progress(run, await client.fetch_plan(run["id"]))
    is_live = screen is None and not is_plain and is_terminal()
    chosen: Screen = _screen(progress, is_live=is_live) if screen is None else screen.follow(progress)
    with chosen as shown:
        async with groups.one_error(), asyncio.TaskGroup() as group:
            reader = group.create_task(_show_output(client, run["id"], shown)) if has_output else None
            waiting = group.create_task(_tell_of_waiting(client, run["id"], shown, is_alone=is_alone))
            async with aclosing(client.follow_events(run["id"])) as events:
                async for event in events:
                    shown.on_event(event)
            waiting.cancel()
            if reader is not None and is_live:
                await asyncio.wait([reader], timeout=_LAST_LINES_S)
                reader.cancel()
        ended = await client.fetch_run(run["id"])
        shown.on_end(ended)
    return ended


async def until_over(client: Client, run: Run, *, is_alone: bool = False) -> Run:
    """Wait in silence until the run is over; the run as it ended.

    PistageError `unplaceable` as soon as something waits that no agent there is could ever take. With `is_alone`
    nobody but this process gives the run an agent, and that one gets a moment longer to come.
    """
    hopeless = running(_refuse_the_hopeless(client, run, is_alone=is_alone))
    async with hopeless, aclosing(client.follow_events(run["id"])) as events:
        async for _ in events:
            pass
    return await client.fetch_run(run["id"])


async def _refuse_the_hopeless(client: Client, run: Run, *, is_alone: bool) -> None:
    patience_s = _HOPELESS_S if is_alone else _DOUBT_S
    since: float | None = None
    pause_s = _LOOK_FIRST_S
    while True:
        stuck: list[str] = []
        with suppress(PistageError):  # the events say what becomes of the run; this only looks on
            tasks = (await client.fetch_run(run["id"]))["tasks"]
            stuck = [task["name"] for task in tasks if task["state"] == "queued" and not task.get("is_placeable", True)]
        if not stuck:
            since, pause_s = None, min(2 * pause_s, _LOOK_EVERY_S)
        elif since is None:
            since, pause_s = time.monotonic(), _LOOK_FIRST_S
        elif time.monotonic() - since >= patience_s:
            raise await _hopeless(client, run, stuck[0], is_alone=is_alone)
        await asyncio.sleep(pause_s)


async def _hopeless(client: Client, run: Run, name: str, *, is_alone: bool) -> PistageError:
    title = f"{run['name']}#{run['number']}"
    told: Any = (await client.fetch_why(run["id"], task=name))["tasks"][0]
    agents = ((told.get("waiting") or {}).get("agents") or [])[: _AGENTS_NAMED_MAX + 1]
    reasons = [f"{one['name']}: {', '.join(one['reasons'])}" for one in agents[:_AGENTS_NAMED_MAX]]
    reasons += ["…"] if len(agents) > _AGENTS_NAMED_MAX else []
    return PistageError(
        Code.UNPLACEABLE,
        f"task {name!r} cannot be placed on any agent there is: {'; '.join(reasons) or 'no agent has registered'}",
        hint=_ALONE
        if is_alone
        else f"{title} stays queued until one comes that can: pistage why {_quoted(title)} says more, "
        f"pistage cancel {_quoted(title)} gives it up",
    )


def is_terminal() -> bool:
    """Whether a live picture can be drawn: both streams are a terminal that understands it."""
    return sys.stdout.isatty() and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def say_result(run: Run, *, server_hint: str = "") -> int:
    """Say what to type next; the exit code that the run's end asks for."""
    title = f"{run['name']}#{run['number']}"
    if run["state"] != "succeeded":
        for line in _failures(run):
            output.say(line, fg="red")
    output.say(f"look again: pistage show {_quoted(title)}, pistage logs {_quoted(title)}{server_hint}")
    return exit_code(run)


def exit_code(run: Run) -> int:
    """0 succeeded, 1 failed, 3 cancelled."""
    return EXIT_CODES.get(run["state"], 1)


def _failures(run: Run) -> list[str]:
    lines = []
    for task in run.get("tasks") or []:
        if task["state"] in {"failed", "lost"}:
            last = (task.get("attempts") or [{}])[-1]
            failed = [step for step in last.get("steps") or [] if step["state"] in {"failed", "lost"}]
            step = f"/{failed[0]['name']}" if failed else ""
            reason = (failed[0].get("reason") if failed else "") or task.get("reason") or task["state"]
            lines.append(f"{task['name']}{step}: {reason}")
    return lines


def _quoted(title: str) -> str:
    import shlex

    return shlex.quote(title)


def _screen(progress: Progress, *, is_live: bool) -> Screen:
    if not is_live:
        return PlainScreen(progress, is_single=progress.step_count() == 1)
    from pistage.cli.live import LiveScreen

    return LiveScreen(progress)


async def _tell_of_waiting(client: Client, run_id: str, screen: Screen, *, is_alone: bool) -> None:
    said: dict[str, str] = {}
    hopeless_s = 0.0
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        try:
            run = await client.fetch_run(run_id)
        except PistageError:
            continue  # the events say what becomes of the run; this only looks on
        waiting = [task for task in run["tasks"] if task["state"] == "queued" and task.get("waiting")]
        for task in waiting:
            if said.get(task["name"]) != task["waiting"]:
                said[task["name"]] = task["waiting"]
                screen.on_waiting(task["name"], task["waiting"])
        is_stuck = any(not task.get("is_placeable", True) for task in waiting) and not any(
            task["state"] == "running" for task in run["tasks"]
        )
        hopeless_s = hopeless_s + _LOOK_EVERY_S if is_stuck else 0.0
        if is_alone and hopeless_s >= _HOPELESS_S:
            task = next(task for task in waiting if not task.get("is_placeable", True))
            raise PistageError(
                Code.UNPLACEABLE,
                f"task {task['name']!r} cannot be placed: {task['waiting']}",
                hint=_ALONE,
            )


async def _show_output(client: Client, run_id: str, screen: Screen) -> None:
    async with aclosing(client.follow_chunks(run_id, Selection(has_kept=False))) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, Gap):
                screen.on_gap(chunk)
            else:
                screen.on_chunk(chunk)
