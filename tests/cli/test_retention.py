"""The verbs of retention and pins: what they ask of the master, and what they tell."""

import json
from typing import Any

import pytest
from aiohttp import web

from tests.cli.conftest import AT, FakeMaster, Pistage

DAY_S = 86_400


class KeepingMaster(FakeMaster):
    """The same, and what is asked by these verbs."""

    def __init__(self) -> None:
        super().__init__()
        unsaid = {"age_s": 90.0 * DAY_S, "bytes_max": None, "runs_max": None, "is_set": False}
        self.said = [{"name": "*", "runs": 3, "output_bytes": 4 << 20} | unsaid]
        self.about: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        return super().run() | self.about

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix("/api/v1")
        match request.method, path.strip("/").split("/", 1 if "retention" in path else 2):
            case "GET", ["retention"]:
                return web.json_response({"items": self.said})
            case "PUT", ["retention", name]:
                body = json.loads(await request.text())
                self.requests.append(("PUT", path, body))
                return web.json_response({"name": name, "is_set": True, "runs": 0, "output_bytes": 0} | body)
            case "DELETE", ["retention", _]:
                self.requests.append(("DELETE", path, ""))
                return web.Response(status=204)
            case "POST", ["runs", "demo#1", "pin" | "unpin" as verb]:
                return web.json_response(self.run() | {"is_pinned": verb == "pin"})
        return await super().handle(request)


@pytest.fixture
def new_master() -> KeepingMaster:
    return KeepingMaster()


def asked(age_s: float | None, bytes_max: int | None, runs_max: int | None) -> dict[str, Any]:
    return {"age_s": age_s, "bytes_max": bytes_max, "runs_max": runs_max}


def test_retention_is_listed_and_says_how_much_there_is(
    pistage: Pistage, master: KeepingMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"name": "Build", "age_s": 5400.0, "bytes_max": 10 << 30, "runs_max": 7, "is_set": True, "runs": 1}
    master.said.append(one | {"output_bytes": 12})
    assert pistage("retention", "ls") == 0
    assert capsys.readouterr().out.splitlines() == [
        "PIPELINE  AGE  SIZE      RUNS  SET  KEPT",
        "*         90d  -         -     -    3 runs, 4.0 MiB",
        "Build     90m  10.0 GiB  7     yes  1 run, 12 B",
    ]
    assert pistage("retention", "ls", "-o", "name") == 0
    assert capsys.readouterr().out == "*\nBuild\n"


def test_what_is_not_said_of_a_pipeline_stays_as_it_is_for_it_now(
    pistage: Pistage, master: KeepingMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pistage("retention", "set", "a/b", "--runs", "100") == 0
    assert master.requests[-1] == ("PUT", "/retention/a/b", asked(90 * DAY_S, None, 100))
    assert "a/b: output is kept for 90d, of the newest 100 runs" in capsys.readouterr().err
    master.said.append(master.said[0] | {"name": "q", "bytes_max": 5, "runs_max": 9})
    assert pistage("retention", "set", "q", "--age", "none", "--size", "10Gi") == 0
    assert master.requests[-1] == ("PUT", "/retention/q", asked(None, 10 << 30, 9))
    assert "q: output is kept at most 10.0 GiB, of the newest 9 runs" in capsys.readouterr().err
    assert pistage("retention", "set", "*", "--age", "none") == 0
    assert master.requests[-1] == ("PUT", "/retention/*", asked(None, None, None))
    assert "*: all output is kept" in capsys.readouterr().err
    assert pistage("retention", "rm", "*") == 0
    assert master.requests[-1] == ("DELETE", "/retention/*", "")
    assert "*: kept for 90 days" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [(), ("--age", "0"), ("--age", "x"), ("--size", "1"), ("--size", "x"), ("--runs", "0"), ("--runs", "1_0")]
)
def test_a_bound_that_is_none_is_refused(pistage: Pistage, master: KeepingMaster, argv: tuple[str, ...]) -> None:
    assert pistage("retention", "set", "q", *argv) == 2
    assert master.requests == []


def test_a_run_is_pinned_and_unpinned_and_show_tells(
    pistage: Pistage, master: KeepingMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pistage("pin", "demo#1") == 0
    assert "demo#1: its output stays, whatever retention says" in capsys.readouterr().err
    assert pistage("unpin", "demo#1") == 0
    assert "demo#1: its output goes by retention again" in capsys.readouterr().err
    for about, told in (
        ({"output_bytes": 2048}, "2.0 KiB"),
        ({"output_bytes": 2048, "is_pinned": True}, "2.0 KiB, pinned: it stays, whatever retention says"),
        ({"output_bytes": None, "is_pinned": True}, "pinned: it stays, whatever retention says"),
        (
            {"output_bytes": 1, "output_dropped_at": AT.format(9), "output_dropped_reason": "it is\x1b[31m old"},
            f"dropped {AT.format(9)}: it is old",
        ),
    ):
        master.about = about
        assert pistage("show", "demo#1") == 0
        assert f"\n  output   {told}\n" in capsys.readouterr().out
    master.about = {"output_bytes": None}
    assert pistage("show", "demo#1") == 0
    assert "  output   " not in capsys.readouterr().out
