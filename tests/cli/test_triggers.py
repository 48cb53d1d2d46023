"""The verbs `webhook` and `after`, and how `show` says what started a run."""

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pistage.cli.run import _refuse_triggers
from pistage.errors import Code, PistageError
from tests.cli.conftest import AT, FakeMaster, Pistage

DEPLOYED = {"name": "D", "number": 7, "state": "lost"}
AFTER = {
    "name": "Deploy", "after": [{"pipeline": "Build", "state": "failed"}, {"pipeline": "Test", "state": "ended"}],
    "latest": [{"at": AT.format(1), "outcome": "ran", "reason": "", "run": DEPLOYED}],
}  # fmt: skip


class Triggering(FakeMaster):
    """Knows webhooks by their names, and one definition that comes after others."""

    def __init__(self) -> None:
        super().__init__()
        self.webhooks: dict[str, dict[str, Any]] = {}
        self.after: dict[str, Any] = AFTER
        self.sets: dict[str, Any] | None = None  # what a submission is answered with, instead of a run

    async def handle(self, request: web.Request) -> web.StreamResponse:  # noqa: PLR0911 - a table
        answer = await super().handle(request)
        method, path, body = self.requests[-1]
        name = path.rpartition("/")[2]
        match method, path.strip("/").split("/"):
            case "POST", ["runs"] if self.sets is not None:
                return web.json_response(self.sets, status=201)
            case "PUT", ["webhooks", _]:
                view = {
                    "name": name, "path": f"/hooks/{name}", "action": body.get("action"), "events": body["events"],
                    "is_new": name not in self.webhooks,
                }  # fmt: skip
                self.webhooks[name] = view
                return web.json_response(view, status=201)
            case "GET", ["webhooks", _] if name in self.webhooks:
                return web.json_response(self.webhooks[name])
            case "GET", ["webhooks"]:
                return web.json_response({"items": list(self.webhooks.values()), "next": None})
            case "GET", ["afters"]:
                return web.json_response({"items": [self.after], "next": None})
            case "DELETE", ["webhooks" | "afters", _]:
                return web.Response(status=204)
        return answer


@pytest.fixture
def new_master() -> FakeMaster:
    return Triggering()


@pytest.fixture
def triggering(master: FakeMaster) -> Triggering:
    assert isinstance(master, Triggering)
    return master


def test_a_webhook_is_added_with_a_secret_that_is_printed_alone_on_stdout(
    pistage: Pistage, triggering: Triggering, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "build.yaml"
    file.write_text("name: Build\nimage: busybox\nrun: echo\n")
    given = ("--input", "tag=a.b ?? \"x=y\"", "--with", "to=here", "--event", "push", "--window", "1h")  # fmt: skip
    when = ("--when", "ref=main", "--when", "ref=next", "--when", "n=3", "--when", "draft=false", "--when", "l=[1]")
    assert pistage("webhook", "add", "build", str(file), *given, *when) == 0
    printed = capsys.readouterr()
    method, path, body = triggering.requests[-1]
    assert (method, path) == ("PUT", "/webhooks/build")
    assert printed.out == body["secret"] + "\n"
    assert len(body["secret"]) >= 32
    assert body["secret"] not in printed.err
    assert body | {"secret": ""} == {
        "definition": file.read_text(), "inputs": {"tag": 'a.b ?? "x=y"'}, "with": {"to": "here"}, "events": ["push"],
        "when": {"ref": ["main", "next"], "n": [3], "draft": [False], "l": ["[1]"]}, "window_s": 3600.0, "secret": "",
    }  # fmt: skip
    assert "POST /hooks/build of push, signed" in printed.err
    assert "takes the place" not in printed.err


def test_one_that_is_there_keeps_its_secret_and_a_file_gives_another(
    pistage: Pistage, triggering: Triggering, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pistage("webhook", "add", "build", "Build") == 0
    capsys.readouterr()
    assert pistage("webhook", "add", "build", "Build") == 0
    assert "secret" not in triggering.requests[-1][2]
    assert "of any event" in (said := capsys.readouterr().err) and "takes the place of the build" in said
    (tmp_path / "secret").write_text("a secret of a file\n")
    assert pistage("webhook", "add", "build", "Build", "--secret-file", str(tmp_path / "secret")) == 0
    assert triggering.requests[-1][2]["secret"] == "a secret of a file"
    assert capsys.readouterr().out == ""


def test_a_webhook_is_not_set_while_nobody_can_say_whether_it_is_there(
    pistage: Pistage, triggering: Triggering, capsys: pytest.CaptureFixture[str]
) -> None:
    triggering.refusal = PistageError(Code.FORBIDDEN, "not you")
    assert pistage("webhook", "add", "build", "Build") == 4
    assert [method for method, *_ in triggering.requests] == ["GET"]


@pytest.mark.parametrize("option", ["--input", "--when"])
def test_a_pair_without_a_sign_is_a_usage_error(
    pistage: Pistage, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pistage("webhook", "add", "build", "Build", option, "tag") == 2
    assert f"{option}: expected NAME=VALUE, got 'tag'" in capsys.readouterr().err


def test_webhooks_are_listed_shown_and_removed(
    pistage: Pistage, triggering: Triggering, capsys: pytest.CaptureFixture[str]
) -> None:
    pistage("webhook", "add", "build", "Build", "--event", "push")
    capsys.readouterr()
    assert pistage("webhook", "ls") == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["build", "Build", "push", "/hooks/build"]
    assert pistage("webhook", "show", "build") == 0
    assert "path: /hooks/build" in capsys.readouterr().out
    assert pistage("webhook", "rm", "build") == 0
    assert triggering.requests[-1][:2] == ("DELETE", "/webhooks/build")


def test_what_comes_after_others_is_listed_and_removed(
    pistage: Pistage, triggering: Triggering, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pistage("after", "ls") == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split("  ")[0] == "Deploy"
    assert "Build failed, Test ended" in line
    assert "2024-01-01 00:00:01Z D#7 lost" in line
    failed = {"at": AT.format(1), "outcome": "failed", "reason": "no action 'x'", "run": None}
    triggering.after = AFTER | {"latest": [failed]}
    assert pistage("after", "ls") == 0
    assert "failed: no action 'x'" in capsys.readouterr().out
    assert pistage("after", "rm", "Deploy") == 0
    assert triggering.requests[-1][:2] == ("DELETE", "/afters/Deploy")


def test_running_a_definition_that_comes_after_others_says_that_it_was_set(
    pistage: Pistage, triggering: Triggering, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deploy.yaml").write_text("name: Deploy\nafter: Build\nimage: busybox\nrun: echo\n")
    triggering.sets = {"schedules": [], "after": AFTER}
    assert pistage("run", str(tmp_path / "deploy.yaml")) == 0
    printed = capsys.readouterr()
    assert printed.out == "Deploy\n"
    assert "Deploy: runs after Build failed, Test ended" in printed.err
    assert printed.err.count("run it at once") == 1


@pytest.mark.parametrize(
    ("by", "told"),
    [
        ({"kind": "api"}, "by hand"),
        ({"kind": "schedule", "name": "night", "nominal": "2026-11-22T02:30:00.000Z"},
         "by schedule night for 2026-11-22 02:30:00Z"),
        ({"kind": "webhook", "name": "push\x1b[2J"}, "by webhook push"),
        ({"kind": "run", "name": "build#42", "run": "01"}, "by the end of build#42"),
        ({"kind": "retry", "run": "01"}, "by a retry of demo#6"),
        (None, "by hand"),
    ],
)  # fmt: skip
def test_show_says_what_started_a_run(
    pistage: Pistage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, by: Any, told: str
) -> None:
    whole = FakeMaster.run
    more = {"started_by": by, "retry_of_number": 6}
    monkeypatch.setattr(FakeMaster, "run", lambda self: whole(self) | more)
    assert pistage("show", "demo#1") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  started ")]
    assert line == f"  started  {told}"


@pytest.mark.parametrize(("key", "told"), [("after: Build", "comes after"), ("schedule: '@daily'", "has a schedule")])
def test_what_runs_by_itself_is_not_set_in_a_cluster_that_ends_with_the_command(key: str, told: str) -> None:
    text = f"name: Deploy\n{key}\nimage: busybox\nrun: echo\n"
    with pytest.raises(PistageError, match=told) as refused:
        _refuse_triggers("deploy.yaml", {"definition": text})
    assert refused.value.code is Code.USAGE
    assert "pistage run --now deploy.yaml" in str(refused.value.hint)
    _refuse_triggers("deploy.yaml", {"definition": text.replace(f"{key}\n", "")})
