"""`run`, `dev` and `serve` for real: a master and an agent in processes of their own, steps as plain processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DEMO = """
name: Demo
uses:
  first:
    - {image: alpine, name: say, run: "echo hello; echo oops >&2"}
  second:
    needs: [first]
    steps:
      - {image: alpine, name: say, run: "printf 'no newline'"}
"""
HELD = "name: Held\nimage: alpine\nretry: 0\nrun: while [ ! -e {gate} ]; do sleep 0.05; done; echo through\n"


class Shell:
    """Runs `pistage` as a user with a home of her own would."""

    def __init__(self, home: Path) -> None:
        self.home = home
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("PISTAGE_", "XDG_", "DOCKER"))
        }
        self.env = clean | {"HOME": str(home), "TERM": "dumb"}
        self.started: list[subprocess.Popen[bytes]] = []

    def __call__(self, *argv: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "pistage", *argv],
            env=self.env,
            cwd=self.home,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr.decode()
        return done

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pistage", *argv],
            env=self.env,
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # `communicate` would lose what a readline before it has buffered
        )
        self.started.append(process)
        return process

    def file(self, name: str, text: str) -> str:
        (self.home / name).write_text(text)
        return name

    def held(self, name: str = "held.yaml") -> str:
        """A definition whose step waits until `gate` is made."""
        return self.file(name, HELD.format(gate=self.home / "gate"))

    def open_gate(self) -> None:
        (self.home / "gate").touch()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[bytes], text: str) -> str:
    """Read stderr up to the line that holds `text`; all that was read."""
    assert process.stderr is not None
    read = ""
    while text not in read:
        line = process.stderr.readline().decode()
        assert line, f"ended before {text!r}: {read}"
        read += line
    return read


def test_a_one_command_run_needs_nothing_and_leaves_what_can_be_looked_at(shell: Shell) -> None:
    done = shell("run", "--runtime", "host", shell.file("demo.yaml", DEMO))
    assert sorted(done.stdout.decode().splitlines()) == [
        "first/say | hello",
        "first/say | oops",
        "second/say | no newline",
    ]
    assert b"images are NOT used" in done.stderr
    assert b"run Demo#1: succeeded" in done.stderr
    runs = json.loads(shell("ps", "-o", "json").stdout)
    assert [(run["name"], run["number"], run["state"]) for run in runs] == [("Demo", 1, "succeeded")]
    assert shell("logs", "Demo#1/second").stdout == b"no newline"
    assert shell("logs", "Demo#1/first/say", "--stream", "stderr").stdout == b"oops\n"
    assert b"say [alpine]" in shell("show", runs[0]["id"][:6]).stdout
    assert shell("logs", "Demo#2", code=5).stdout == b""


def test_a_failing_run_is_1_and_a_wrong_document_is_2_with_its_place(shell: Shell) -> None:
    failing = shell.file("failing.yaml", "name: F\nimage: a\nretry: 0\nrun: exit 7\n")
    done = shell("run", "--runtime", "host", failing, code=1)
    assert b"7" in done.stderr
    wrong = shell.file("wrong.yaml", "name: F\nuses:\n  main:\n    - dep: Nothing\n")
    done = shell("run", "--runtime", "host", wrong, code=2)
    assert b"wrong.yaml:4:" in done.stderr
    assert b"Nothing" in done.stderr
    assert shell("run", "missing.yaml", code=5).stdout == b""


def test_a_second_run_joins_the_cluster_of_the_first(shell: Shell) -> None:
    first = shell.start("run", "--runtime", "host", shell.held())
    wait_for(first, "step main")
    second = shell.start("run", shell.held("other.yaml"))
    wait_for(second, "run Held#2")
    assert b"Held#2" in shell("ps").stdout
    shell.open_gate()
    for process in (first, second):
        assert b"through" in process.communicate(timeout=60)[0]
        assert process.returncode == 0
    assert shell("ps", "-o", "name").stdout.count(b"\n") == 2


def test_a_run_that_this_machine_can_never_take_says_why_and_is_6(shell: Shell) -> None:
    shell.file("gpu.yaml", "name: Gpu\nimage: alpine\nrun: 'true'\nagent: gpu=true\n")
    done = shell("run", "--runtime", "host", "gpu.yaml", code=6)
    assert b"task main: waits: " in done.stderr and b"label gpu=true is missing" in done.stderr
    assert json.loads(shell("show", "Gpu#1", "-o", "json").stdout)["state"] == "cancelled"


def test_docker_that_was_asked_for_and_is_not_there_is_said_at_once(shell: Shell) -> None:
    shell.env["DOCKER_HOST"] = f"unix://{shell.home}/no.sock"
    done = shell("run", "--runtime", "docker", shell.file("demo.yaml", DEMO), code=7)
    assert b"error: --runtime docker: no engine answers at unix:///" in done.stderr
    assert b"queued" not in done.stderr


def test_plan_finds_the_actions_that_run_would_find(shell: Shell) -> None:
    shell.file("own.yaml", "name: Own\nimage: a\nrun: echo own\n")
    shell.file("user.yaml", "name: User\nuses: {main: [{dep: Own}]}\n")
    shell("plan", "user.yaml", code=2)
    shell("run", "--runtime", "host", "own.yaml")
    shell("action", "put", "own.yaml")
    assert b"$ echo own" in shell("plan", "user.yaml").stdout
    shell("plan", "user.yaml", "--actions", ".")


def test_an_interrupted_embedded_run_is_cancelled(shell: Shell) -> None:
    run = shell.start("run", "--runtime", "host", shell.held())
    wait_for(run, "step main")
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert b"cancelling Held#1" in err
    assert json.loads(shell("show", "Held#1", "-o", "json").stdout)["state"] == "cancelled"


def test_a_run_whose_cluster_was_killed_is_taken_up_by_the_next_one(shell: Shell) -> None:
    run = shell.start("run", "--runtime", "host", shell.held())
    wait_for(run, "step main")
    run.kill()
    run.wait()
    assert json.loads(shell("ps", "-o", "json").stdout)[0]["state"] == "running"
    shell.open_gate()
    quick = shell.file("quick.yaml", "name: Quick\nimage: a\nrun: echo quick\n")
    assert shell("run", "--runtime", "host", quick).stdout == b"quick\n"
    assert {run["state"] for run in json.loads(shell("ps", "-o", "json").stdout)} <= {"succeeded", "lost"}


def test_a_reader_that_goes_away_is_no_failure_to_shout_about(shell: Shell) -> None:
    shell("run", "--runtime", "host", shell.file("seq.yaml", "name: Seq\nimage: a\nrun: seq 300000\n"))
    logs = shell.start("logs", "Seq#1")
    assert logs.stdout is not None
    assert logs.stdout.readline() == b"1\n"
    logs.stdout.close()
    logs.stdout = None
    _, err = logs.communicate(timeout=60)
    assert logs.returncode == 141
    assert b"bug of Pistage" not in err


def test_dev_is_found_by_the_other_verbs_and_stops_cleanly(shell: Shell) -> None:
    dev = shell.start("dev", "--runtime", "host", "--listen", "127.0.0.1:0")
    wait_for(dev, "everything else")
    detached = shell("run", "--detach", shell.held())
    watch = shell.start("watch", detached.stdout.decode().strip())
    wait_for(watch, "step main")
    shell("wait", "Held#1", "--timeout", "0.1", code=8)
    shell.open_gate()
    assert shell("wait", "Held#1").stdout == b"Held#1 succeeded\n"
    assert watch.communicate(timeout=60)[0] == b"through\n"
    second = shell("dev", code=2)
    assert b"runs on" in second.stderr
    doctor = json.loads(subprocess.run(
        [sys.executable, "-m", "pistage", "doctor", "-o", "json"], env=shell.env, capture_output=True, check=False
    ).stdout)  # fmt: skip
    assert {"server": "fine"}.items() <= {check["name"]: check["verdict"] for check in doctor}.items()
    dev.send_signal(signal.SIGTERM)
    assert dev.communicate(timeout=60)
    assert dev.returncode == 0
    assert not (shell.home / ".local/share/pistage/endpoint.json").exists()


def test_a_dev_that_is_put_to_sleep_does_not_give_up_its_own_work(shell: Shell) -> None:
    dev = shell.start("dev", "--runtime", "host", "--listen", "127.0.0.1:0")
    wait_for(dev, "everything else")
    detached = shell("run", "--detach", shell.held())
    watch = shell.start("watch", detached.stdout.decode().strip())
    wait_for(watch, "step main")
    lease = json.loads((shell.home / ".local/share/pistage/agent/lease").read_text())
    assert lease["length_s"] >= 86400, "a night"
    shell.open_gate()
    assert shell("wait", "Held#1").stdout == b"Held#1 succeeded\n"


def test_a_token_is_asked_for_and_a_wrong_one_is_4(shell: Shell) -> None:
    dev = shell.start("dev", "--runtime", "host", "--listen", "127.0.0.1:0", "--token", "right")
    url = wait_for(dev, "everything else").split("pistage dev: ")[1].split(",")[0]
    assert shell("ps", "--server", url, "--token", "right").returncode == 0
    for argv in ([], ["--token", "wrong"]):
        shell("ps", "--server", url, *argv, code=4)


def test_logs_go_on_byte_for_byte_when_the_master_is_killed_and_started_again(shell: Shell) -> None:
    """kill -9 in the middle of a stream: the same CLI process prints what came before and after it, once."""
    token = shell.file("token", "a token")
    master_argv = ["serve", "--role", "master", "--token-file", token, "--data-dir", "m"]
    master = shell.start(*master_argv, "--listen", "127.0.0.1:0")
    url = wait_for(master, "master listens").split("url=")[1].split()[0]
    agent = shell.start(
        "serve", "--role", "agent", "--masters", url, "--token-file", token, "--data-dir", "a", "--runtime", "host",
        "--allow-host-runtime", "--ignore-images",
    )  # fmt: skip
    assert agent.stderr is not None
    script = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; cat /dev/null"
    definition = shell.file("count.yaml", f"name: Count\nimage: alpine\nretry: 0\nrun: {script}\n")
    remote = ["--server", url, "--token-file", token]
    shell("run", "--detach", *remote, definition)
    logs = shell.start("logs", "-f", "Count#1", *remote)
    assert logs.stdout is not None
    head = b"".join(logs.stdout.readline() for _ in range(20))
    master.kill()
    master.wait()
    again = shell.start(*master_argv, "--listen", url.removeprefix("http://"))
    wait_for(again, "master listens")
    printed = head + logs.communicate(timeout=60)[0]
    expected = b"".join(b"line %d\n" % number for number in range(300))
    assert printed == expected
    assert shell("wait", "Count#1", *remote).returncode == 0
    for process in (agent, again):
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0


def test_the_first_line_of_the_demo_is_there_in_under_three_seconds(shell: Shell) -> None:
    """Not a measurement (scripts/bench has those), but the promise of the first minute."""
    begun = time.monotonic()
    dev = shell.start("dev", "--demo", "--exit", "--runtime", "host", "--listen", "127.0.0.1:0")
    assert dev.stdout is not None
    assert b"hello" in dev.stdout.readline()
    took = time.monotonic() - begun
    dev.communicate(timeout=60)
    assert dev.returncode == 0
    assert took < 30  # generous where tests share a machine


def test_a_guest_whose_cluster_is_interrupted_says_how_to_go_on_and_holds_nobody_up(shell: Shell) -> None:
    first = shell.start("run", "--runtime", "host", shell.held())
    wait_for(first, "step main")
    second = shell.start("run", shell.held("other.yaml"))
    wait_for(second, "step main")
    first.send_signal(signal.SIGINT)
    _, err = second.communicate(timeout=20)
    assert second.returncode == 7
    assert b"has ended before it" in err
    assert b"pistage watch 'Held#2'" in err
    assert first.wait(20) == 130
    assert json.loads(shell("ps", "--limit", "1", "-o", "json").stdout)[0]["state"] == "running"


def test_a_full_disk_under_stdout_is_no_bug_of_ours(shell: Shell) -> None:
    shell("run", "--runtime", "host", shell.file("demo.yaml", DEMO))
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pistage", "ps"],
            env=shell.env,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert b"error: cannot write the output: No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.returncode not in {0, 70}
