"""Agents that are cut off, stopped or killed under what they run: when the old execution ends, when the new one starts.

Each trial is one task on one of two agents. With `on_partition: kill` the old execution's last sign comes before the
new one's start, as long as the agent lives; with `continue` both run. In every case one result counts.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pistage.client import Client
from tests.chaos import witness
from tests.chaos.faults import Scene
from tests.chaos.group import TOKEN, Shape, until
from tests.chaos.witness import Signs, now_s

LEASE_S: Final = 1.0
SHAPE: Final = Shape(
    agents=2,
    master_flags=("--lease", f"{LEASE_S:g}s", "--heartbeat", "200ms"),
    agent_flags=("--slots", "4", "--drain-timeout", "0s"),
)
_STARTS_WITHIN_S = 30.0
_ENDS_WITHIN_S = 30.0
_BOTH_RUN_S = 0.3  # for so long, after the new one's start, the old one must have gone on to be said to overlap


# --- what is done to the agent ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Harm:
    """`do` is over when the harm is done, `mend` when it is undone; `overlaps`: the agent cannot act meanwhile."""

    about: str
    do: Callable[[Scene, str], Awaitable[None]]
    mend: Callable[[Scene, str], Awaitable[None]]
    overlaps: bool = False


async def _both_ways(scene: Scene, agent: str) -> None:
    _network(scene).isolate(agent)


async def _mute(scene: Scene, agent: str) -> None:
    for master in scene.group.masters:
        _network(scene).cut(agent, master)


async def _deaf(scene: Scene, agent: str) -> None:
    for master in scene.group.masters:
        _network(scene).cut(master, agent)


async def _from_leader(scene: Scene, agent: str) -> None:
    leader = await scene.group.leader()
    _network(scene).cut(agent, leader)
    _network(scene).cut(leader, agent)


async def _with_leader(scene: Scene, agent: str) -> None:
    """The agent and the leader on one side, all others on the other one."""
    near = [await scene.group.leader(), agent]
    for far in [*scene.group.masters, *scene.group.agents]:
        for one in near:
            if far not in near:
                _network(scene).cut(far, one)
                _network(scene).cut(one, far)


async def _heal(scene: Scene, agent: str) -> None:
    _network(scene).heal()


async def _stop_a_little(scene: Scene, agent: str) -> None:
    """For longer than the lease and shorter than the leader's patience."""
    scene.group.pause(agent)
    await asyncio.sleep(scene.chance.uniform(1.2, 2.0) * LEASE_S)
    scene.group.resume(agent)


async def _stop(scene: Scene, agent: str) -> None:
    scene.group.pause(agent)


async def _go_on(scene: Scene, agent: str) -> None:
    scene.group.resume(agent)


async def _kill_while_cut(scene: Scene, agent: str) -> None:
    _network(scene).isolate(agent)
    await asyncio.sleep(scene.chance.uniform(0.0, 0.3))
    scene.group.kill(agent)
    await asyncio.sleep(scene.chance.uniform(0.0, 0.3))
    scene.group.start(agent)


async def _nothing(scene: Scene, agent: str) -> None:
    pass


def _network(scene: Scene) -> Any:
    assert scene.network is not None, "cuts need the namespaces"
    return scene.network


CUTS: Final = (
    Harm("both ways", _both_ways, _heal),
    Harm("agent is not heard", _mute, _heal),
    Harm("agent hears nothing", _deaf, _heal),
    Harm("from the leader only", _from_leader, _heal),
    Harm("with the leader", _with_leader, _heal),
)
STOPPED_A_LITTLE: Final = Harm("SIGSTOP < patience", _stop_a_little, _nothing)
STOPPED: Final = Harm("SIGSTOP > patience", _stop, _go_on, overlaps=True)
KILLED: Final = Harm("kill -9, started, cut", _kill_while_cut, _heal)


# --- one trial -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Seconds from the harm to the old one's last sign, and to the new one's start; from the mending to the old end."""

    kind: str
    old_s: float
    new_s: float
    removed_s: float | None = None

    @property
    def gap_s(self) -> float:
        """From the old one's last sign to the new one's start; less than nothing where both ran."""
        return self.new_s - self.old_s


class _Course:
    """One task, from its submission to the end that counts."""

    def __init__(self, scene: Scene, client: Client, directory: Path) -> None:
        self._scene, self._group, self._client = scene, scene.group, client
        self._directory = directory
        self._run_id = ""

    async def begin(self, on_partition: str, *, is_stubborn: bool) -> Signs:
        """Submit it; what it shows once it runs."""
        self._directory.mkdir(parents=True)
        definition = {
            "name": "Witness",
            "image": "busybox",
            "run": witness.script(self._directory, is_stubborn=is_stubborn),
            "on_partition": on_partition,
            "retry": {"limit": 3, "on": "lost", "backoff": {"initial": "10ms"}},  # as soon as can be
        }
        run = await self._client.submit_run({"definition": json.dumps(definition)})
        self._run_id = run["id"]
        return await self.execution(0)

    async def execution(self, number: int) -> Signs:
        """The first, the second …; waits for it."""

        def there() -> Signs | None:
            found = witness.seen(self._directory)
            return found[number] if len(found) > number else None

        found: Signs = await until(there, _STARTS_WITHIN_S)
        return found

    def now(self, signs: Signs) -> Signs:
        """What that execution has left by now."""
        return next(one for one in witness.seen(self._directory) if one.fence == signs.fence)

    def tell_to_end(self, signs: Signs) -> None:
        witness.tell_to_end(self._directory, signs.fence)

    async def gone(self, signs: Signs) -> None:
        await until(lambda: not signs.is_alive, _ENDS_WITHIN_S)

    async def ended(self) -> None:
        """Wait for the run's end."""
        await until(self._is_over, _ENDS_WITHIN_S)

    async def _is_over(self) -> bool:
        return (await self._client.fetch_run(self._run_id))["finished_at"] is not None

    async def settle(self, old: Signs, new: Signs) -> None:
        """Everything is whole again: one result counts, what was lost stayed lost, nothing runs or is remembered."""
        await self.ended()
        await until(self._group.is_whole, 60.0)
        await until(lambda: not any(one.is_alive for one in witness.seen(self._directory)), _ENDS_WITHIN_S)
        await until(lambda: not any(self._group.journal_bytes(agent) for agent in self._group.agents), _ENDS_WITHIN_S)
        run = await self._client.fetch_run(self._run_id)
        attempts = [(one["fence"], one["state"]) for one in run["tasks"][0]["attempts"]]
        if run["state"] != "succeeded" or attempts != [(old.fence, "lost"), (new.fence, "succeeded")]:
            self._scene.fail(f"run {self._run_id} is {run['state']}, its attempts {attempts}: not one lost, one good")
        if (fences := [one.fence for one in witness.seen(self._directory)]) != [old.fence, new.fence]:
            self._scene.fail(f"run {self._run_id} was carried out under the fences {fences}")


async def kill_trial(scene: Scene, client: Client, directory: Path, harm: Harm) -> Trial:
    """`on_partition: kill`: nothing of the old execution once the new one has started, if the agent could act."""
    course = _Course(scene, client, directory)
    is_stubborn = scene.chance.random() < 0.5
    old = await course.begin("kill", is_stubborn=is_stubborn)
    await asyncio.sleep(scene.chance.uniform(0.1, 1.2))  # at any time between two heartbeats, and two looks at them
    harmed_s = now_s()
    await harm.do(scene, old.agent)
    new = await course.execution(1)
    if harm.overlaps:
        await asyncio.sleep(_BOTH_RUN_S + scene.chance.random())
        if not old.is_alive:
            scene.fail(f"{harm.about}: the old execution ended although its agent was stopped")
    mended_s = now_s()
    await harm.mend(scene, old.agent)
    await course.gone(old)
    course.tell_to_end(new)
    await course.settle(old, new)
    last_s = course.now(old).last_s
    trial = Trial(kind=harm.about, old_s=last_s - harmed_s, new_s=new.started_s - harmed_s,
                  removed_s=last_s - mended_s if harm.overlaps else None)  # fmt: skip
    if trial.gap_s <= 0 and not harm.overlaps:
        scene.fail(
            f"{harm.about}: the new execution started {-1000 * trial.gap_s:.0f} ms before the old one's last sign"
        )
    scene.say(f"{harm.about}: {old.agent}{', TERM not heeded' if is_stubborn else ''}: {_told(trial)}")
    return trial


CONTINUED: Final = ("old ends first", "old still runs", "new ends first")


async def continue_trial(scene: Scene, client: Client, directory: Path, harm: Harm, order: str) -> Trial:
    """`on_partition: continue`: both run; the new one's result counts, whatever comes of the old one and when."""
    course = _Course(scene, client, directory)
    old = await course.begin("continue", is_stubborn=scene.chance.random() < 0.5)
    await asyncio.sleep(scene.chance.uniform(0.1, 1.2))
    harmed_s = now_s()
    await harm.do(scene, old.agent)
    new = await course.execution(1)
    await asyncio.sleep(_BOTH_RUN_S)
    if not (old.is_alive and new.is_alive):
        scene.fail(f"{order}: of two executions that may overlap one has ended")
    if order == CONTINUED[0]:
        course.tell_to_end(old)
        await course.gone(old)
    elif order == CONTINUED[2]:
        course.tell_to_end(new)
        await course.ended()
    mended_s = now_s()
    await harm.mend(scene, old.agent)
    await course.gone(old)
    removed_s = now_s() - mended_s
    if order != CONTINUED[2]:
        await until(lambda: not scene.group.journal_bytes(old.agent), _ENDS_WITHIN_S)  # its result is refused by now
        course.tell_to_end(new)
    await course.settle(old, new)
    trial = Trial(kind=f"continue: {order}", old_s=course.now(old).last_s - harmed_s, new_s=new.started_s - harmed_s,
                  removed_s=None if order == CONTINUED[0] else removed_s)  # fmt: skip
    if trial.gap_s > -_BOTH_RUN_S:
        scene.fail(f"{order}: the two executions do not overlap: {_told(trial)}")
    scene.say(f"{trial.kind}, {harm.about}: {old.agent}: {_told(trial)}")
    return trial


def _told(trial: Trial) -> str:
    return f"old until {trial.old_s:.3f} s, new from {trial.new_s:.3f} s after it, gap {1000 * trial.gap_s:.0f} ms" + (
        f", old gone {1000 * trial.removed_s:.0f} ms after the mending" if trial.removed_s is not None else ""
    )


# --- all of them -----------------------------------------------------------------------------------------------------


async def measure(scene: Scene, trials: int) -> list[str]:
    """So many cuts with `kill`, of each kind in turn, and a fifth as many of everything else; the table."""
    others = max(1, trials // 5)
    harms = [CUTS[n % len(CUTS)] for n in range(trials)]
    harms += [one for one in (STOPPED_A_LITTLE, STOPPED, KILLED) for _ in range(others)]
    orders = [CONTINUED[n % len(CONTINUED)] for n in range(max(len(CONTINUED), others))]
    done: list[Trial] = []
    root = scene.group.directory / "witnesses"
    async with Client(list(scene.group.urls.values()), TOKEN, first_patience_s=30.0, patience_s=30.0) as client:
        for number, harm in enumerate(harms):
            done.append(await kill_trial(scene, client, root / f"kill-{number}", harm))
        for number, order in enumerate(orders):
            harm = scene.chance.choice(CUTS)
            done.append(await continue_trial(scene, client, root / f"continue-{number}", harm, order))
    return table(done, cuts=trials)


def table(done: Sequence[Trial], *, cuts: int) -> list[str]:
    """Least, median and most of each kind, milliseconds; the first `cuts` trials once more, all together."""
    kinds = dict.fromkeys(trial.kind for trial in done)
    rows = [(kind, [trial for trial in done if trial.kind == kind]) for kind in kinds]
    rows.insert(len(CUTS), ("all of these cuts", list(done[:cuts])))
    head = ("ms: least/median/most", "n", "harm to old's last", "harm to new's start", "gap", "mended to old's end")
    return [_line(head)] + [
        _line((
            kind, str(len(trials)), *(_spread(times) for times in (
                [one.old_s for one in trials], [one.new_s for one in trials], [one.gap_s for one in trials],
                [one.removed_s for one in trials if one.removed_s is not None],
            )),
        ))
        for kind, trials in rows
        if trials
    ]  # fmt: skip


def _line(cells: Sequence[str]) -> str:
    kind, count, *rest = cells
    return f"{kind:26}{count:>4}" + "".join(f"{cell:>23}" for cell in rest)


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    return "/".join(f"{1000 * one:.0f}" for one in (min(seconds), statistics.median(seconds), max(seconds)))
