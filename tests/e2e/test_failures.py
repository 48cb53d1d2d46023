"""What can go wrong does: each ends with a clear reason on the run, and nothing is left behind."""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Engine
from tests.e2e.processes import a_cluster, ended, output_of, until
from tests.e2e.test_recovery import nothing_left, printed
from tests.master.fakes import Api

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = Path(__file__).parent.parent.parent
ONCE = {"limit": 0, "on": ["failure", "oom", "lost", "pull"]}


def a_definition(script: str, image: str = "busybox", **more: object) -> str:
    return json.dumps({"name": "Failing", "image": image, "run": script, "retry": ONCE} | more)


async def fail(api: Api, definition: str, timeout_s: float = 90) -> dict[str, Any]:
    done = await ended(api, (await api.submit(definition))["id"], timeout_s)
    assert done["state"] in {"failed", "lost"}, done
    attempt: dict[str, Any] = done["tasks"][-1]["attempts"][-1]
    return done | {"last": attempt}


@pytest.mark.parametrize("image", ["no-such-image:1", "127.0.0.1:1/team/image:1", "nowhere.invalid/image:1"])
async def test_an_image_that_cannot_be_had_is_named_in_the_reason(tmp_path: Path, engine: Engine, image: str) -> None:
    async with a_cluster(tmp_path) as (_, api):
        done = await fail(api, a_definition("true", image))
        assert done["last"]["failure"] == "pull"
        assert image in done["reason"] and "could not be pulled" in done["reason"]
        await nothing_left(engine)


async def test_a_pull_is_tried_again_as_the_policy_says(tmp_path: Path, engine: Engine) -> None:
    retry = {"limit": 1, "on": ["pull"], "backoff": {"initial": 0.1}}
    async with a_cluster(tmp_path) as (_, api):
        done = await fail(api, a_definition("true", "127.0.0.1:1/image:1", retry=retry))
        assert [attempt["failure"] for attempt in done["tasks"][0]["attempts"]] == ["pull", "pull"]


async def test_memory_that_runs_out_is_told_from_a_failure(tmp_path: Path, engine: Engine) -> None:
    hungry = "x=x; while :; do x=$x$x; done"
    async with a_cluster(tmp_path) as (_, api):
        done = await fail(api, a_definition(hungry, resources={"memory": "32Mi"}))
        assert (done["last"]["failure"], "memory" in done["reason"]) == ("oom", True)
        await nothing_left(engine)


async def test_a_step_that_takes_too_long_is_stopped_and_gone(tmp_path: Path, engine: Engine) -> None:
    async with a_cluster(tmp_path, agent_flags=("--stop-grace", "1s")) as (_, api):
        done = await fail(api, a_definition("trap '' TERM; while :; do sleep 1; done", timeout="1s"))
        assert (done["last"]["failure"], "longer than" in done["reason"]) == ("timeout", True)
        await nothing_left(engine)


async def test_a_line_of_a_gigabyte_arrives_whole(tmp_path: Path, engine: Engine) -> None:
    size = 1_000_000_000
    async with a_cluster(tmp_path) as (owned, api):
        made = await api.submit(a_definition(f"head -c {size} /dev/zero | tr '\\0' x"))
        done = await ended(api, made["id"], 200)
        assert done["state"] == "succeeded", done
        expected = hashlib.sha256()
        for _ in range(size // 1_000_000):
            expected.update(b"x" * 1_000_000)
        (step,) = done["tasks"][0]["attempts"][0]["steps"]
        assert (step["stdout_bytes"], step["stdout_sha256"]) == (size, expected.hexdigest())
        for role in ("master", "agent"):
            status = Path(f"/proc/{owned.running[role].pid}/status").read_text()
            assert int(status.split("VmHWM:")[1].split()[0]) < 200 * 1024, role
        await nothing_left(engine)


@contextlib.contextmanager
def a_small_disk(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    if os.geteuid() != 0:
        pytest.skip("making a small file system needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.root
async def test_output_that_fills_the_masters_disk_ends_the_step_with_that_reason(
    tmp_path: Path, engine: Engine
) -> None:
    with a_small_disk(tmp_path / "master", "64m"):
        flags = {"master_flags": ("--disk-free-min", "16Mi"), "agent_flags": ("--output-wait", "2s")}
        async with a_cluster(tmp_path, **flags) as (_, api):  # type: ignore[arg-type]
            done = await fail(api, a_definition("yes 0123456789 | head -c 200000000"))
            assert "disk is full" in done["reason"]
            status, refused = await api.call("POST", "/api/v1/runs", data=a_definition("true"))
            assert (status, refused["code"]) == (507, "storage")
            await nothing_left(engine)


@pytest.mark.root
async def test_a_step_goes_on_when_the_full_disk_has_space_again(tmp_path: Path, engine: Engine) -> None:
    with a_small_disk(tmp_path / "master", "64m"):
        filler = tmp_path / "master" / "filler"
        async with a_cluster(tmp_path, master_flags=("--disk-free-min", "16Mi")) as (owned, api):
            made = await api.submit(a_definition("echo first; sleep 2; yes x | head -c 1000000"))
            await printed(api, made["id"], 1)
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(filler.parent).free - (1 << 20))
            await until(lambda: "disk is full" in owned.log_of("master"))
            filler.unlink()
            done = await ended(api, made["id"])
            assert done["state"] == "succeeded", done
            assert await output_of(api, made["id"]) == b"first\n" + b"x\n" * 500_000


@pytest.fixture
def own_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An engine that a test may kill."""
    if os.geteuid() != 0:
        pytest.skip("starting an engine needs root")
    directory = Path(tempfile.mkdtemp(prefix="pistage-e-"))  # short: a socket's path has at most 108 characters
    try:
        run_script("start", directory)
        run_script("images", directory, "busybox:latest")
        monkeypatch.setenv("DOCKER_HOST", f"unix://{directory}/docker.sock")
        yield directory
    finally:
        run_script("stop", directory)
        run_script("remove", directory)


def run_script(verb: str, directory: Path, *words: str) -> None:
    subprocess.run([ROOT / "scripts" / "engine", verb, directory, *words], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.root
async def test_an_engine_killed_under_a_step_ends_it_with_a_reason_or_its_true_outcome(
    tmp_path: Path, own_engine: Path
) -> None:
    async with a_cluster(tmp_path) as (_, api):
        made = await api.submit(a_definition("echo begun; sleep 60"))
        await printed(api, made["id"], 1)
        os.kill(int((own_engine / "pid").read_text()), signal.SIGKILL)
        await asyncio.sleep(1)
        await asyncio.to_thread(run_script, "start", own_engine)
        done = await ended(api, made["id"], 90)
        assert done["state"] in {"failed", "lost"}, done
        assert "engine" in done["reason"] or "signal" in done["reason"], done["reason"]
        assert await output_of(api, made["id"]) == b"begun\n"
        await nothing_left(Engine(f"{own_engine}/docker.sock"))
