"""Three masters, five agents, two of them on one engine, and 500 tasks of many kinds: each where it belongs, never too
many at once, as the agents' own journals tell it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pistage.agent.journal import Entry, Journal
from pistage.agent.segment import Segment
from pistage.core.commands import Accepted, Finished, StepStarted
from tests.e2e.fleets import Fleet, a_fleet, all_ended, attempts_of, connected
from tests.e2e.processes import until
from tests.master.fakes import Api

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(240)]

GIB = 1 << 30
Amounts = dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """An agent: what it is started with, which `capacity` says again."""

    runtime: str = "host"
    labels: str = ""
    cpus: float
    memory_gib: int
    gpus: int = 0
    slots: int

    def flags(self, name: str) -> list[str]:
        sizes = ["--cpus", str(self.cpus), "--memory", f"{self.memory_gib}Gi", "--slots", str(self.slots)]
        labels = ["--labels", ",".join(filter(None, (f"me={name}", self.labels)))]
        return [*sizes, *labels, "--gpus", str(self.gpus), "--stop-grace", "1s"]

    @property
    def capacity(self) -> Amounts:
        return {
            "cpus_milli": round(self.cpus * 1000), "memory_bytes": self.memory_gib * GIB, "gpus": self.gpus,
            "slots": self.slots,
        }  # fmt: skip


OFFERS = {
    "d1": Offer(runtime="docker", labels="engine,disk=ssd", cpus=2, memory_gib=2, slots=5),
    "d2": Offer(runtime="docker", labels="engine,disk=hdd", cpus=1, memory_gib=1, slots=4),
    "h1": Offer(labels="zone=a,tier=fast", cpus=4, memory_gib=4, slots=8),
    "h2": Offer(labels="zone=b", cpus=2, memory_gib=2, gpus=2, slots=6),
    "h3": Offer(labels="zone=b,spot=true", cpus=1.5, memory_gib=1, slots=4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """So many runs alike; `fits` are the agents that their labels, and what there is of anything, allow."""

    count: int
    fits: str
    script: str = "true"
    groups: int = 1
    keys: dict[str, Any] = field(default_factory=dict)

    @property
    def document(self) -> dict[str, Any]:
        base = {"name": "Mixed", "retry": 0, **self.keys}
        step = {"image": "busybox", "run": self.script}
        if self.groups == 1:
            return base | step
        return base | {"uses": {f"group {n}": [step] for n in range(self.groups)}}


def needs(cpus: float, memory: str = "16Mi", gpus: int = 0) -> dict[str, Any]:
    return {"cpus": cpus, "memory": memory, "gpus": gpus}


KINDS = [
    Kind(count=20, fits="d1 d2", keys={"agent": "engine", "resources": needs(0.5, "128Mi")}),
    Kind(count=20, fits="d1", keys={"agent": "disk=ssd", "resources": needs(1, "512Mi")}),
    Kind(count=20, fits="d2", keys={"agent": "engine, disk!=ssd", "resources": needs(0.3, "256Mi")}),
    Kind(count=80, fits="h1", script="sleep 0.2", keys={"agent": "tier=fast", "resources": needs(1.5, "1Gi")}),
    Kind(count=30, fits="h2 h3", script="sleep 0.05", groups=4, keys={"agent": "zone=b", "resources": needs(0.25)}),
    Kind(count=120, fits="h1 h2", script="sleep 0.1", keys={
        "agent": ["zone in [a, b]", "!spot"], "resources": needs(0.5, "600Mi")
    }),
    Kind(count=50, fits="h2", script="sleep 0.1", keys={"resources": needs(0.2, gpus=1)}),
    Kind(count=10, fits="h2", script="sleep 0.2", keys={"resources": needs(0.1, gpus=2)}),
    Kind(count=40, fits="h1", script="sleep 0.1", keys={"resources": needs(3)}),
    Kind(count=20, fits="d1 d2 h1 h2 h3", script="sleep 0.05", keys={"resources": needs(0.1)}),
]  # fmt: skip


async def test_500_tasks_run_where_they_belong_and_no_agent_ever_has_too_many(tmp_path: Path, engine: Any) -> None:
    assert sum(kind.count * kind.groups for kind in KINDS) == 500
    async with a_fleet(tmp_path, masters=3, socket=engine.socket) as (fleet, api):
        for name, offer in OFFERS.items():
            fleet.start_agent(*offer.flags(name), name=name, runtime=offer.runtime)
        await connected(api, *OFFERS)
        keepers = await keep_journals(api)
        kind_of = await submit_all(fleet, api)
        runs = await all_ended(api, list(kind_of), timeout_s=150)
        journals = {name: read_journal(fleet.data(name) / "journal", tmp_path / f"copy of {name}") for name in OFFERS}
        for run_id in keepers:
            await api.call("POST", f"/api/v1/runs/{run_id}/cancel")

        told = {attempt_id: (name, entry) for name in OFFERS for attempt_id, entry in journals[name].items()}
        assert len(told) == sum(map(len, journals.values())) == 500 + len(OFFERS), "each is in one journal"
        places = Counter[str]()
        for run in runs:
            kind = kind_of[run["id"]]
            assert len(run["tasks"]) == kind.groups
            for task in run["tasks"]:
                (attempt,) = task["attempts"]
                name, entry = told[attempt["id"]]
                places[name] += 1
                assert name in kind.fits.split(), (name, kind)
                assert (attempt["agent_name"], attempt["agent_id"]) == (name, fleet.agent_id(name))
                assert (attempt["fence"], attempt["state"]) == (entry.assign.fence, "succeeded")
                assert ends_of(entry) == ["succeeded"] and len(starts_of(entry)) == 1
        print("tasks", dict(places))
        await nothing_too_much(api, journals)
        await all_ended(api, keepers)


async def nothing_too_much(api: Api, journals: dict[str, dict[str, Entry]]) -> None:
    """At no instant is more in work at an agent than it offered. Some offers were used up, or this proves nothing."""
    _, listed = await api.call("GET", "/api/v1/agents")
    offered = {item["name"]: item["capacity"] for item in listed["items"]}
    fullest: Amounts = dict.fromkeys(("cpus_milli", "memory_bytes", "gpus", "slots"), 0)
    for name, offer in OFFERS.items():
        assert offered[name] == offer.capacity
        peak = peak_of(journals[name])
        print(name, {key: f"{peak[key]} of {offer.capacity[key]}" for key in peak})
        assert all(peak[key] <= offer.capacity[key] for key in peak), name
        for key in peak:
            fullest[key] += peak[key] == offer.capacity[key] > 0
    assert fullest["cpus_milli"] and fullest["gpus"] and fullest["slots"], "nothing was ever full"


def peak_of(entries: dict[str, Entry]) -> Amounts:
    """The most that was in work at one time, of each: from when it was accepted until it had finished."""
    moments = sorted(moment for entry in entries.values() for moment in moments_of(entry))
    now = {"cpus_milli": 0, "memory_bytes": 0, "gpus": 0, "slots": 0}
    peak = dict(now)
    for _, sign, cpus, memory, gpus in moments:  # of one millisecond, ends first: they let others begin
        for key, amount in zip(now, (cpus, memory, gpus, 1), strict=True):
            now[key] += sign * amount
            peak[key] = max(peak[key], now[key])
    return peak


def moments_of(entry: Entry) -> Iterator[tuple[int, int, int, int, int]]:
    want = entry.assign.task.resources
    amounts = (want.cpus_milli or 0, want.memory_bytes or 0, want.gpus)
    for event in entry.events:
        if isinstance(event, Accepted | Finished):
            yield event.at, 1 if isinstance(event, Accepted) else -1, *amounts


def ends_of(entry: Entry) -> list[str]:
    return [str(event.result.state) for event in entry.events if isinstance(event, Finished)]


def starts_of(entry: Entry) -> list[StepStarted]:
    return [event for event in entry.events if isinstance(event, StepStarted)]


async def keep_journals(api: Api) -> list[str]:
    """A run at each agent that goes on until it is cancelled: a journal is emptied only when nothing in it lives."""
    kept = {"name": "Keeper", "image": "busybox", "run": "sleep 600", "retry": 0, "resources": needs(0.1)}
    run_ids = [(await api.submit(json.dumps(kept | {"agent": f"me={name}"})))["id"] for name in OFFERS]

    async def run_all() -> bool:
        return all([attempts_of(await api.run(run_id)) for run_id in run_ids])

    await until(run_all)
    return run_ids


def read_journal(directory: Path, copy: Path) -> dict[str, Entry]:
    """Every attempt that the journal of an agent tells of, those that are over and acknowledged too."""
    journal, entries = Journal(copy), dict[str, Entry]()
    (file,) = directory.glob("*.journal")
    (copy / file.name).with_suffix(".copy").write_bytes(file.read_bytes())
    segment = Segment((copy / file.name).with_suffix(".copy"))
    for record in segment.records:
        match record:
            case [str(attempt_id), "whole", *_]:
                entry = Entry.of_record(journal, record)
                assert entry is not None and attempt_id not in entries
                entries[attempt_id] = entry
            case [str(attempt_id), kind, *_] if kind != "dropped":
                entries[attempt_id].replay(record)
    segment.close()
    journal.close()
    return entries


async def submit_all(fleet: Fleet, api: Api) -> dict[str, Kind]:
    """Half of each kind in one request, the others one by one, at each master in turn; the kind of each run."""
    masters = [Api(api.session, fleet.urls[name]) for name in fleet.founders]
    kind_of: dict[str, Kind] = {}

    async def submit(turn: int, kind: Kind) -> None:
        text, half = json.dumps(kind.document), kind.count // 2
        body = {"definition": text, "runs": [{}] * half}
        status, made = await masters[turn % 3].call("POST", "/api/v1/runs/batch", json=body)
        assert status == 201, made
        singles = [(await masters[(turn + n) % 3].submit(text))["id"] for n in range(kind.count - half)]
        kind_of.update(dict.fromkeys([*(run["id"] for run in made["items"]), *singles], kind))

    await asyncio.gather(*(submit(turn, kind) for turn, kind in enumerate(KINDS)))
    return kind_of
