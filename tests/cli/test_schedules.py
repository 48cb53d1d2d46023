"""The verb `cron`, and `run` of what has a schedule: what they ask of the master, and what they tell."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web

from pistage.cli.root import execute
from tests.cli.conftest import FakeMaster, Pistage

NEXT = ["2026-11-23T01:30:00.000Z", "2026-11-24T01:30:00.000Z"]
RAN = {
    "nominal": "2026-11-22T01:30:00.000Z", "until": "2026-11-22T01:30:00.000Z", "count": 1, "outcome": "ran",
    "reason": "", "run": {"id": "01hq", "name": "demo", "number": 1, "state": "succeeded"}, "at": NEXT[0],
}  # fmt: skip
MISSED = RAN | {"until": NEXT[0], "count": None, "outcome": "missed", "reason": "no leader, catch_up none", "run": None}
NIGHT = {
    "name": "night", "definition": "night", "action": None, "cron": "30 2 * * *", "timezone": "Europe/Berlin",
    "is_enabled": True, "paused_reason": "", "next": NEXT, "last": RAN,
}  # fmt: skip
PAUSED = NIGHT | {"name": "late", "is_enabled": False, "paused_reason": "somebody paused it", "next": [], "last": None}
TEXT = "name: night\nschedule: '30 2 * * *'\nimage: busybox\nrun: echo\n"


class ClockMaster(FakeMaster):
    """The same, with two schedules."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix("/api/v1")
        match request.method, path.strip("/").split("/"):
            case "GET", ["schedules"]:
                is_second = request.query.get("cursor") == "late"
                page = {"items": [NIGHT], "next": None} if is_second else {"items": [PAUSED], "next": "late"}
                return web.json_response(page)
            case "GET", ["schedules", name]:
                return web.json_response(NIGHT if name == "night" else PAUSED)
            case "GET", ["schedules", _, "fires"]:
                return web.json_response({"items": [RAN, MISSED], "next": None})
            case ("PUT" | "POST" | "DELETE") as method, ["schedules", *_]:
                text = await request.text()
                self.requests.append((method, path, json.loads(text) if text else ""))
                return web.Response(status=204) if method == "DELETE" else web.json_response(NIGHT)
            case "POST", ["runs"] if "now" not in request.query:
                return web.json_response({"schedules": [NIGHT]}, status=201)
        return await super().handle(request)


@pytest.fixture
def new_master() -> ClockMaster:
    return ClockMaster()


def test_they_are_listed_page_after_page_with_the_next_time_and_the_last(
    pistage: Pistage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pistage("cron", "ls") == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out] == ["SCHEDULE", "late", "night"]
    assert "paused" in out[1] and "2026-11-23 01:30:00Z" in out[2] and "demo#1 succeeded" in out[2]
    assert pistage("cron", "ls", "-o", "name") == 0
    assert capsys.readouterr().out == "late\nnight\n"


def test_one_is_set_by_hand_with_all_that_can_be_said(
    pistage: Pistage, master: ClockMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ["--timezone", "Europe/Berlin", "--overlap", "queue", "--catch-up", "last", "--jitter", "5m", "--once"]
    given = ["--paused", "--with", "day=now", "--from", "t2"]
    assert pistage("cron", "add", "night/1", "Hello", "--cron", "30 2 * * *", *said, *given) == 0
    schedule = {
        "cron": "30 2 * * *", "timezone": "Europe/Berlin", "overlap": "queue", "catch_up": "last", "jitter": "5m",
        "once": True, "enabled": False, "with": {"day": "now"},
    }  # fmt: skip
    body = {"action": "Hello", "start_node": "t2", "schedule": schedule}
    assert master.requests[-1] == ("PUT", "/schedules/night/1", body)
    told = capsys.readouterr()
    assert told.out == "night\n"
    assert "schedule night: 30 2 * * * in Europe/Berlin, next 2026-11-23 01:30:00Z" in told.err
    assert "run it at once" not in told.err  # not with what it is given


@pytest.mark.parametrize(("verb", "method", "path"), [
    ("rm", "DELETE", "/schedules/night"), ("pause", "POST", "/schedules/night/pause"),
    ("resume", "POST", "/schedules/night/resume"),
])  # fmt: skip
def test_one_is_removed_paused_and_resumed(
    pistage: Pistage, master: ClockMaster, verb: str, method: str, path: str
) -> None:
    assert pistage("cron", verb, "night") == 0
    assert master.requests[-1][:2] == (method, path)


def test_the_next_times_of_one_are_told_in_its_zone_and_in_utc(
    pistage: Pistage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pistage("cron", "next", "night") == 0
    assert capsys.readouterr().out.splitlines() == [
        "Europe/Berlin                  UTC",
        "Mon 2026-11-23 02:30:00 +0100  2026-11-23 01:30:00 UTC",
        "Tue 2026-11-24 02:30:00 +0100  2026-11-24 01:30:00 UTC",
    ]
    assert pistage("cron", "next", "late") == 0
    assert "late does not fire: somebody paused it" in capsys.readouterr().err


def test_the_next_times_of_an_expression_need_no_server(
    pistage: Pistage, master: ClockMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pistage("cron", "next", "0 0 1 1 *", "--timezone", "Asia/Shanghai", "-n", "2") == 0
    head, first, second = capsys.readouterr().out.splitlines()
    year = datetime.now(UTC).year + 1
    assert head.split() == ["Asia/Shanghai", "UTC"]
    assert f"{year}-01-01 00:00:00 +0800  {year - 1}-12-31 16:00:00 UTC" in first and f"{year + 1}-01-01" in second
    assert pistage("cron", "next", "@daily") == 0
    assert len(capsys.readouterr().out.splitlines()) == 11
    assert master.requests == []


def test_an_expression_without_a_time_to_come_is_told_of(pistage: Pistage, capsys: pytest.CaptureFixture[str]) -> None:
    assert pistage("cron", "next", "0 0 0 1 1 ? 2020") == 0
    told = capsys.readouterr()
    assert (told.out, "no time is left" in told.err) == ("", True)


@pytest.mark.parametrize("asked", [["61 * * * *"], ["* * *"], ["@dayly"], ["* * * * *", "--timezone", "Mars"]])
def test_an_expression_that_is_wrong_is_told_of(
    pistage: Pistage, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    assert pistage("cron", "next", *asked) == 2
    assert "error: " in capsys.readouterr().err


def test_the_history_says_what_became_of_each_time(pistage: Pistage, capsys: pytest.CaptureFixture[str]) -> None:
    assert pistage("cron", "history", "night") == 0
    _, ran, missed = capsys.readouterr().out.splitlines()
    assert ran.split() == ["2026-11-22", "01:30:00Z", "-", "1", "ran", "demo#1", "succeeded", "-"]
    assert missed.split()[-6:] == ["missed", "-", "no", "leader,", "catch_up", "none"]


def test_run_sets_what_has_a_schedule_and_says_so(
    pistage: Pistage, master: ClockMaster, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "night.yaml"
    file.write_text(TEXT, encoding="utf-8")
    assert pistage("run", str(file)) == 0
    told = capsys.readouterr()
    assert told.out == "night\n" and f"run it at once: pistage run --now {file}" in told.err
    assert pistage("run", "--now", "--wait", str(file)) == 0
    assert master.queries[[path for _, path, _ in master.requests].index("/runs")]["now"] == "1"


def test_a_cluster_that_ends_with_the_command_takes_no_schedule(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "night.yaml"
    file.write_text(TEXT, encoding="utf-8")
    assert execute(["run", "--runtime", "host", str(file)]) == 2
    assert "pistage run --now" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["cron", "add", "x", "FILE", "--cron", "@daily"], ["webhook", "add", "x", "FILE"]])
def test_what_would_end_with_the_cluster_of_the_command_is_not_set(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "night.yaml"
    file.write_text(TEXT.replace("schedule: '30 2 * * *'\n", ""), encoding="utf-8")
    assert execute(["run", "--runtime", "host", str(file)]) == 0
    capsys.readouterr()
    assert execute([str(file) if word == "FILE" else word for word in verb]) == 2
    told = capsys.readouterr()
    assert (told.out, "the cluster of this command ends with it" in told.err) == ("", True)
    assert "pistage dev" in told.err
