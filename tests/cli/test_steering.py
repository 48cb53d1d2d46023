"""The verbs that say why, try again, and steer: what they ask of the master, and what they tell."""

import json
from typing import Any

import pytest
from aiohttp import web

from pistage.cli import follow
from tests.cli.conftest import AT, FakeMaster, Pistage

WAITING = {
    "since": AT.format(0), "until": None, "holds": ["concurrency group deploy: 1 of 1 running (deploy#3)"],
    "turn": {"place": 14, "count": 90, "behind": "ann"}, "is_placeable": True, "brief": "…",
    "agents": [
        {"id": "1", "name": "box-1", "reasons": ["3.2 of 4.0 GiB free"]},
        {"id": "2", "name": "box-2", "reasons": ["label gpu=true is missing"]},
        {"id": "3", "name": "box-3", "reasons": []},
        {"id": "4", "name": "box-4", "reasons": ["label gpu=true is missing"]},
    ],
}  # fmt: skip
HOPELESS = WAITING | {"holds": [], "turn": None, "is_placeable": False, "agents": WAITING["agents"][1:2]}  # type: ignore[index]


def told(name: str, state: str, **given: Any) -> dict[str, Any]:
    nothing = {"reason": "", "needs": [], "waiting": None, "running": None, "cancelled": None, "attempts": []}
    return {"name": name, "state": state} | nothing | given


class SteeredMaster(FakeMaster):
    """The same, and what is asked by these verbs."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[dict[str, Any]] = [told("a", "queued", waiting=WAITING)]
        self.is_placeable = True
        self.queues: list[dict[str, Any]] = []
        self.slots_used = [0]  # what each look at the agents finds; the last one stays
        self.asked_for: list[tuple[str, str]] = []

    def run(self) -> dict[str, Any]:
        run = super().run()
        if self.state == "queued":
            task = {"name": "a", "state": "queued", "waiting": "…", "is_placeable": self.is_placeable, "attempts": []}
            run["tasks"] = [task]
        return run | {"priority": 0, "queue": "default"}

    async def handle(self, request: web.Request) -> web.StreamResponse:  # noqa: PLR0911 - a table
        path = request.path.removeprefix("/api/v1")
        self.asked_for.append((path, request.query_string))
        body = json.loads(await request.text() or "{}") if request.method in {"PUT", "POST"} else {}
        match request.method, path.strip("/").split("/"):
            case "GET", ["runs", "01hq", "why"]:
                return web.json_response(self.run() | {"tasks": self.told, "more": 0})
            case "POST", ["runs", "01hq", "retry"]:
                self.requests.append(("POST", path, body))
                kept = {"name": "z", "state": "succeeded", "kept_from": "old", "attempts": []}
                run = self.run()
                return web.json_response(run | {"number": 2, "tasks": [kept, *run["tasks"]]}, status=201)
            case "POST", ["runs", "01hq", "priority"]:
                return web.json_response(self.run() | body)
            case "GET", ["queues"]:
                return web.json_response({"items": self.queues})
            case "PUT", ["queues", name]:
                self.requests.append(("PUT", path, body))
                return web.json_response({"name": name} | body)
            case "DELETE", ["queues", _]:
                return web.Response(status=204)
            case "DELETE", ["agents", _]:
                return web.json_response({"name": "box", "was_connected": True, "attempts_lost": ["x"]})
            case "GET", ["agents"]:
                used = {"slots": self.slots_used.pop(0) if len(self.slots_used) > 1 else self.slots_used[0]}
                agent = {"id": "ag1", "name": "box", "state": "lost", "reason": "silent for 20 s", "version": "1.2"}
                more = {
                    "is_draining": True,
                    "drain_until": AT.format(0),
                    "epoch": 3,
                    "capacity": {"slots": 8, "gpus": 2},
                }
                return web.json_response({"items": [agent | more | {"used": used, "is_connected": False}]})
        return await super().handle(request)


@pytest.fixture
def new_master() -> SteeredMaster:
    return SteeredMaster()


def test_why_tells_holds_place_and_every_agent(pistage: Pistage, capsys: pytest.CaptureFixture[str]) -> None:
    assert pistage("why", "demo#1") == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1].startswith("a  queued for ")
    assert lines[2:] == [
        "concurrency group deploy: 1 of 1 running (deploy#3)",
        "queue place 14 of 90, behind tasks of ann",
        "box-1: 3.2 of 4.0 GiB free",
        "box-2, box-4: label gpu=true is missing",
        "box-3: nothing but its turn",
    ]
    assert pistage("why", "demo#1/a", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["tasks"][0]["waiting"]["turn"]["place"] == 14


def test_why_tells_what_each_state_needs(
    pistage: Pistage, master: SteeredMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = {"number": 1, "agent_name": "box-1", "agent_id": "1", "state": "failed", "reason": "exit code 3"}
    ended |= {"started_at": AT.format(0), "finished_at": AT.format(2), "memory_bytes_then": 2**30}
    running = {"agent_name": "box-2", "agent_id": "2", "attempt": 2, "is_accepted": True, "since": AT.format(3)}
    cancelled = {"of": "task", "by": "ann", "at": AT.format(3), "reason": "enough"}
    needs = [{"task": "a", "state": "running"}, {"task": "z", "state": "succeeded"}]
    master.told = [
        told("a", "running", running=running, attempts=[ended]),
        told("b", "pending", needs=needs),
        told("c", "cancelled", reason="enough", cancelled=cancelled),
        told("d", "skipped", reason="needs 'c', which ended cancelled"),
        told("e", "queued", waiting=HOPELESS),
        told("f", "queued"),
    ]
    assert pistage("why", "demo#1") == 0
    out = capsys.readouterr().out
    assert "a  running on box-2, attempt 2, for " in out
    assert "attempt 1 on box-1: failed after 2.00s: exit code 3; then tried with 1.0 GiB of memory" in out
    assert "b  pending: needs a (running)\n" in out
    assert "c  cancelled: enough\n    it was cancelled by ann " in out
    assert "d  skipped: needs 'c', which ended cancelled" in out
    assert "box-2: label gpu=true is missing\n    no agent there is could ever take it" in out
    assert "f  queued: why is not known now" in out


def test_why_of_a_run_that_succeeded_is_one_line(
    pistage: Pistage, master: SteeredMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    master.told = []
    assert pistage("why", "demo#1") == 0
    assert capsys.readouterr().out == "demo#1  succeeded\n"
    assert pistage("why", "demo#1/x") == 5
    assert "it has a" in capsys.readouterr().err


def test_retry_asks_for_what_is_wanted_and_follows_the_new_run(
    pistage: Pistage, master: SteeredMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, body in (
        ([], {}),
        (["--failed"], {"failed": True}),
        (["--from", "a"], {"from": "a"}),
    ):
        assert pistage("retry", "demo#1", *argv) == 0
        assert ("POST", "/runs/01hq/retry", body) in master.requests
        out, err = capsys.readouterr()
        assert "demo#2 tries demo#1 again: 1 of 2 tasks are kept" in err
        assert "hello" in out
    assert all("kept=0" in query for path, query in master.asked_for if path.endswith("/logs"))
    assert pistage("retry", "demo#1", "--detach") == 0
    assert capsys.readouterr().out == "01hq\n"
    assert pistage("retry", "demo#1", "--failed", "--from", "a") == 2


def test_one_task_is_cancelled_by_its_name(
    pistage: Pistage, master: SteeredMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pistage("cancel", "demo#1/a") == 0
    assert ("/runs/01hq/cancel", "task=a") in master.asked_for
    assert capsys.readouterr().err == "demo#1/a is cancelled\n"
    assert pistage("cancel", "demo#1/b") == 5


def test_a_priority_is_set_and_one_that_cannot_be_is_refused(
    pistage: Pistage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pistage("priority", "demo#1", "70") == 0
    assert capsys.readouterr().err == "demo#1: priority 70, was 0\n"
    assert pistage("priority", "demo#1", "1001") == 2


def test_a_queue_is_listed_set_in_part_and_removed(
    pistage: Pistage, master: SteeredMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"name": "q", "priority": 5, "limit": 3, "placing": "pack", "is_set": True, "running": 1, "waiting": 2}
    master.queues = [known]
    assert pistage("queue", "ls") == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["q", "5", "3", "pack", "1", "2", "yes"]
    assert pistage("queue", "set", "q", "--limit", "none") == 0
    assert master.requests[-1] == ("PUT", "/queues/q", {"priority": 5, "limit": None, "placing": "pack"})
    assert pistage("queue", "set", "new", "--limit", "2") == 0
    assert master.requests[-1] == ("PUT", "/queues/new", {"priority": 0, "limit": 2, "placing": "spread"})
    assert pistage("queue", "rm", "q") == 0
    capsys.readouterr()
    for argv in (["--limit", "0"], ["--limit", "many"], ["--placing", "best"], ["--priority", "-1"], []):
        assert pistage("queue", "set", "q", *argv) == 2


@pytest.mark.slow
def test_an_agent_is_drained_until_it_is_idle_or_the_wait_is_over(
    pistage: Pistage, master: SteeredMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    master.slots_used = [1, 1, 0]
    assert pistage("agent", "drain", "box", "--deadline", "10m", "--wait") == 0
    err = capsys.readouterr().err
    assert "takes no new work; what it runs is stopped in 10m00s" in err
    assert "1 task to go" in err and err.endswith("box: has no work\n")
    assert ("POST", "/agents/ag1/drain", {"deadline_s": 600}) in master.requests
    master.slots_used = [2]
    assert pistage("agent", "drain", "box", "--wait", "--timeout", "0") == 8
    assert "still has 2 tasks" in capsys.readouterr().err
    assert pistage("agent", "drain", "box", "--deadline", "soon") == 2
    assert "expected a duration such as 90s" in capsys.readouterr().err


def test_a_lost_agent_says_why_and_is_removed(pistage: Pistage, capsys: pytest.CaptureFixture[str]) -> None:
    assert pistage("agent", "ls") == 0
    row = capsys.readouterr().out.splitlines()[1]
    for cell in ("lost, draining, time is over", "1.2", "0/2", "silent for 20 s"):
        assert cell in row
    assert pistage("agent", "rm", "box", "--force") == 0
    err = capsys.readouterr().err
    assert "box: removed, 1 task given up" in err and "registers again by itself" in err


def test_who_waits_for_a_task_that_no_agent_could_take_leaves_with_6_and_why(
    pistage: Pistage, master: SteeredMaster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_DOUBT_S", 0.0)
    monkeypatch.setattr(follow, "_LOOK_FIRST_S", 0.01)
    master.state, master.is_held, master.is_placeable = "queued", True, False
    master.told = [told("a", "queued", waiting=HOPELESS)]
    for argv in (["wait", "demo#1"], ["run", "Action", "--wait"], ["retry", "demo#1", "--wait"]):
        assert pistage(*argv) == 6
        out, err = capsys.readouterr()
        assert out == "" and "task 'a' cannot be placed on any agent there is: box-2: label gpu=true is missing" in err
        assert "pistage why" in err and "pistage cancel" in err
    assert not any(path.endswith("/cancel") for path, _ in master.asked_for)
    master.is_placeable = True
    assert pistage("wait", "demo#1", "--timeout", "100ms") == 8


def test_run_wait_prints_the_verdict_alone(
    pistage: Pistage, master: SteeredMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pistage("run", "Action", "--wait") == 0
    assert capsys.readouterr().out == "demo#1 succeeded\n"
    master.state = "failed"
    assert pistage("run", "Action", "--wait") == 1
    assert pistage("run", "Action", "--wait", "--detach") == 2


def test_ps_takes_a_queue(pistage: Pistage, master: SteeredMaster, capsys: pytest.CaptureFixture[str]) -> None:
    assert pistage("ps", "--queue", "q") == 0
    assert any(path == "/runs" and "queue=q" in query for path, query in master.asked_for)
