"""Names on the command line: RUN and what may stand behind it, RUN/TASK/STEP. Names of runs may hold slashes too."""

from __future__ import annotations

from collections.abc import Iterable

from pistage.cli import terminal
from pistage.client import Client, Run
from pistage.errors import Code, PistageError

_NAMED_MAX = 20


async def find_run(client: Client, what: str) -> tuple[Run, str]:
    """The run that the beginning of `what` names, and what stands behind its slash; "" where nothing does."""
    parts = what.split("/")
    for count in range(1, len(parts) + 1):
        try:
            return await client.fetch_run("/".join(parts[:count])), "/".join(parts[count:])
        except PistageError as error:
            if error.code != Code.NOT_FOUND or count == len(parts):
                raise
    raise AssertionError("a text has at least one part")


async def find_task(client: Client, what: str) -> tuple[Run, str | None]:
    """The run and the name of the task that RUN[/TASK] means; `not_found` lists the tasks that there are."""
    run, task = await find_run(client, what)
    known = [one["name"] for one in run.get("tasks") or []]
    if task and task not in known:
        raise unknown("task", task, known)
    return run, task or None


def unknown(kind: str, name: str, known: Iterable[str]) -> PistageError:
    """The error for a task or a step that is not there."""
    some = [terminal.one_line(one) for one in known]
    more = ", …" if len(some) > _NAMED_MAX else ""
    return PistageError(
        Code.NOT_FOUND, f"no {kind} {name!r} in this run", hint=f"it has {', '.join(some[:_NAMED_MAX])}{more}"
    )


def title_of(run: Run) -> str:
    """`name#42`."""
    return f"{run['name']}#{run['number']}"
