"""The verbs of notices: what they ask of the master, and what they tell."""

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.cli.conftest import FakeMaster, Pistage

OPS = {
    "name": "ops", "url": "https://hooks.example.org/…", "on": ["failed", "lost"], "pipelines": None, "body": "",
    "headers": ["X-Key"], "has_secret": True, "owner": "cluster", "changed_at": "2024-01-01T00:00:00.000Z",
}  # fmt: skip


class TellingMaster(FakeMaster):
    """The same, and what is asked by these verbs."""

    def __init__(self) -> None:
        super().__init__()
        self.tried: dict[str, Any] = {"is_delivered": True, "status": 204, "reason": ""}
        self.notices: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        return super().run() | {"notices": self.notices}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix("/api/v1")
        match request.method, path.strip("/").split("/"):
            case "GET", ["notices"]:
                chat = {"name": "chat", "on": ["succeeded"], "pipelines": ["a", "b"], "has_secret": False}
                return web.json_response({"items": [OPS | chat, OPS, OPS | {"name": "rare", "pipelines": []}]})
            case "PUT", ["notices", name]:
                self.requests.append(("PUT", path, json.loads(await request.text())))
                return web.json_response(OPS | {"name": name})
            case "POST", ["notices", _, "test"]:
                return web.json_response(self.tried)
            case "DELETE", ["notices", _]:
                self.requests.append(("DELETE", path, ""))
                return web.Response(status=204)
        return await super().handle(request)


@pytest.fixture
def new_master() -> TellingMaster:
    return TellingMaster()


def test_receivers_are_listed(pistage: Pistage, master: TellingMaster, capsys: pytest.CaptureFixture[str]) -> None:
    assert pistage("notice", "ls") == 0
    assert capsys.readouterr().out.splitlines() == [
        "RECEIVER  URL                          ON           PIPELINES           SIGNED",
        "chat      https://hooks.example.org/…  succeeded    a, b                -",
        "ops       https://hooks.example.org/…  failed,lost  all                 yes",
        "rare      https://hooks.example.org/…  failed,lost  those that name it  yes",
    ]
    assert pistage("notice", "ls", "-o", "name") == 0
    assert capsys.readouterr().out == "chat\nops\nrare\n"


def test_a_receiver_is_added_with_all_that_was_given_and_nothing_else(
    pistage: Pistage, master: TellingMaster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "https://hooks.example.org/token"
    assert pistage("notice", "add", "ops", url) == 0
    assert master.requests[-1] == ("PUT", "/notices/ops", {"url": url, "headers": {}})
    told = capsys.readouterr()
    assert "ops: https://hooks.example.org/… is told of failed, lost" in told.err
    secret, body = tmp_path / "secret", tmp_path / "body"
    secret.write_text("a secret of tests\n")
    body.write_text('{"a": {{ run.name | tojson }}}\n')
    options = ("--on", "failed", "--on", "always", "--pipeline", "a", "--header", "X-Key: a: b")
    assert pistage("notice", "add", "ops", url, *options, "--secret-file", str(secret), "--body-file", str(body)) == 0
    assert master.requests[-1][2] == {
        "url": url, "headers": {"X-Key": "a: b"}, "on": ["failed", "always"], "pipelines": ["a"],
        "body": body.read_text(), "secret": "a secret of tests",
    }  # fmt: skip
    assert "a secret of tests" not in "".join(capsys.readouterr())
    assert pistage("notice", "add", "ops", url, "--when-named") == 0
    assert master.requests[-1][2]["pipelines"] == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--when-named", "--pipeline", "a"), "do not go together"),
        (("--on", "never"), "never"),
        (("--header", "no colon"), "expected NAME:VALUE"),
        (("--secret-file", "/nowhere"), "cannot read /nowhere"),
        (("--secret-file", "/dev/null"), "/dev/null is empty"),
    ],
)
def test_what_makes_no_receiver_is_refused_before_anybody_is_asked(
    pistage: Pistage, master: TellingMaster, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], told: str
) -> None:
    assert pistage("notice", "add", "ops", "https://a.example", *options) == 2
    assert told in capsys.readouterr().err and master.requests == []


def test_a_test_tells_what_came_of_it_by_its_exit_code_too(
    pistage: Pistage, master: TellingMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pistage("notice", "test", "ops") == 0
    assert "ops: delivered, it answered 204" in capsys.readouterr().err
    master.tried = {"is_delivered": False, "status": 404, "reason": "it answered 404"}
    assert pistage("notice", "test", "ops") == 1
    assert "ops: not delivered: it answered 404" in capsys.readouterr().err


def test_a_receiver_is_removed(pistage: Pistage, master: TellingMaster, capsys: pytest.CaptureFixture[str]) -> None:
    assert pistage("notice", "rm", "a b") == 0
    assert master.requests[-1] == ("DELETE", "/notices/a b", "")
    assert "a b: removed" in capsys.readouterr().err


def test_show_tells_what_became_of_notices(
    pistage: Pistage, master: TellingMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"receiver": "ops", "url": None, "state": "delivered", "tries": 1, "reason": ""}
    master.notices = [
        one,
        one
        | {"receiver": None, "url": "https://a.example/…", "state": "waiting", "tries": 3, "reason": "no\x1b[31m way"},
        one | {"receiver": "nobody", "state": "given_up", "tries": 0, "reason": "there is no receiver 'nobody'"},
    ]
    assert pistage("show", "demo#1") == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "  notice   ops  delivered after 1 try",
        "  notice   https://a.example/…  waiting after 3 tries: no way",
        "  notice   nobody  given up: there is no receiver 'nobody'",
    ]
