"""The overview is instant, every verb has its help, and every error ends as a message, a hint and a code."""

import subprocess
import sys

import click
import pytest

from pistage.cli.root import VERBS, cli, execute
from tests.cli.conftest import FakeMaster, Pistage

HEAVY = {"aiohttp", "pydantic", "rich", "yaml", "asyncio", "msgpack", "jinja2", "pistage.config", "pistage.client"}


def test_the_overview_imports_nothing_heavy() -> None:
    program = f"""
import sys
from pistage.cli.root import execute
assert execute(["--help"]) == 0
print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr.strip() == "[]"
    assert all(name in done.stdout for name in VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_is_what_the_overview_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.get_short_help_str(200) == VERBS[name].summary
    assert execute([name, "--help"]) == 0
    assert "Usage: pistage" in capsys.readouterr().out


def test_an_unknown_verb_is_a_usage_error_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["lgos"]) == 2
    assert "did you mean logs?" in capsys.readouterr().err


def test_an_unknown_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["ps", "--nope"]) == 2
    assert "--nope" in capsys.readouterr().err


def test_what_is_not_there_is_5_with_message_and_hint(pistage: Pistage, capsys: pytest.CaptureFixture[str]) -> None:
    assert pistage("show", "nothing") == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert "no /runs/nothing" in err
    assert "hint: look elsewhere" in err


def test_without_a_server_and_without_anything_run_it_says_how_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["ps"]) == 7
    assert "pistage run FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code"),
    [(["wait", "demo#1"], 0), (["watch", "demo#1"], 0), (["run", "Clone Repo"], 0), (["cancel", "demo#1"], 0)],
)
def test_verbs_of_a_run_that_succeeds(pistage: Pistage, argv: list[str], code: int) -> None:
    assert pistage(*argv) == code


@pytest.mark.parametrize(("state", "code"), [("succeeded", 0), ("failed", 1), ("lost", 1), ("cancelled", 3)])
@pytest.mark.parametrize("verb", ["run", "watch", "wait"])
def test_the_code_of_a_verb_is_the_end_of_its_run(
    pistage: Pistage, master: FakeMaster, verb: str, state: str, code: int
) -> None:
    master.state = state
    assert pistage(verb, "demo#1") == code


def test_a_wait_that_times_out_is_8(pistage: Pistage, master: FakeMaster, capsys: pytest.CaptureFixture[str]) -> None:
    master.state, master.is_held = "running", True
    assert pistage("wait", "demo#1", "--timeout", "0.1") == 8
    assert "is not over" in capsys.readouterr().err
