"""What only containers have: images, users, limits, networks, volumes, services, labels, and an engine that can go."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiodocker.stream import Stream

from pistage.agent.attempt.stop import Brake, Stop
from pistage.agent.runtimes.engine import Engine
from pistage.agent.service import Agent
from pistage.core import limits
from pistage.core.commands import StepStarted
from pistage.core.model import State
from pistage.core.plan import (
    Attachment,
    Block,
    Context,
    FailureClass,
    HealthCheck,
    Mount,
    Network,
    Resources,
    Service,
    Step,
    Task,
    Volume,
)
from pistage.wire import Cancel, LogRefused, Release, new_id
from tests.agent.conftest import StartAgent, StopAgent, nothing_left
from tests.agent.fake_master import FakeMaster, script, task

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120), pytest.mark.usefixtures("docker_agent")]


@asynccontextmanager
async def client_of(address: str) -> AsyncIterator[Engine]:
    client = Engine(address)
    await client.connect()
    try:
        yield client
    finally:
        await client.close()


async def until_empty(client: Engine, labels: list[str]) -> None:
    async with asyncio.timeout(20):
        # The engine has no event for a sweep that has ended: it is asked again.
        while await client.listed("volumes", labels):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def with_contexts(base: Task, **changes: Any) -> Task:
    """The task with each context changed."""
    return replace(base, contexts=tuple(replace(context, **changes) for context in base.contexts))


# --- images and users ------------------------------------------------------------------------------------------


async def test_an_image_runs_its_own_entrypoint_and_command(master: FakeMaster) -> None:
    step = Step(id="1", name="1", context="c1")
    end = await master.run(task(step, image="java-pipeline:1.0.1"))
    assert master.stdout(end.attempt_id) == b"java-pipeline 1.0.1 in /workspace with: --defaults\n"


@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
async def test_a_command_of_the_step_takes_the_place_of_the_images(master: FakeMaster, is_shared: bool) -> None:
    step = Step(id="1", name="1", context="c1", command=("--mine",))
    after = [Step(id="2", name="2", context="c1")] if is_shared else []
    end = await master.run(task(step, *after, image="java-pipeline:1.0.1"))
    assert master.stdout(end.attempt_id) == b"java-pipeline 1.0.1 in /workspace with: --mine\n"
    if is_shared:
        assert master.stdout(end.attempt_id, "2").endswith(b"with: --defaults\n")


async def test_a_script_does_not_run_through_the_images_entrypoint(master: FakeMaster) -> None:
    end = await master.run(task(script("echo plain; pwd"), image="java-pipeline:1.0.1"))
    assert master.stdout(end.attempt_id) == b"plain\n/workspace\n"


@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
async def test_the_workspace_belongs_to_an_image_that_is_not_roots_too(master: FakeMaster, is_shared: bool) -> None:
    after = [script("cat file; id -u", id="2", user="2000")] if is_shared else []
    end = await master.run(task(script("echo mine > file; id -u"), *after, image="nonroot:1"))
    assert end.result.state is State.SUCCEEDED, end.result.reason
    assert master.stdout(end.attempt_id) == b"1000\n"
    if is_shared:
        assert master.stdout(end.attempt_id, "2") == b"mine\n2000\n"


async def test_an_image_that_cannot_be_had_fails_as_a_pull(master: FakeMaster) -> None:
    end = await master.run(task(script("true"), image="127.0.0.1:1/nothing:here"))
    assert (end.result.state, end.result.failure) == (State.FAILED, FailureClass.PULL)
    assert "image 127.0.0.1:1/nothing:here could not be pulled" in end.result.reason
    assert "connection refused" in end.result.reason


async def test_a_step_without_an_image_has_no_place_here(master: FakeMaster) -> None:
    end = await master.run(task(script("true"), image=""))
    assert end.result.failure is FailureClass.REFUSED


# --- limits ----------------------------------------------------------------------------------------------------

EAT = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}"


@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
async def test_more_memory_than_the_limit_is_said_to_be_that(master: FakeMaster, is_shared: bool) -> None:
    steps = [script(EAT), *([script("true", id="2")] if is_shared else [])]
    limited = with_contexts(task(*steps), resources=Resources(memory_bytes=64 * 1024**2))
    end = await master.run(limited)
    assert end.result.failure is FailureClass.OOM, end.result.reason
    assert end.result.reason == "step 1: killed for using more memory than its limit of 64 MiB"


async def test_the_engine_is_told_the_limits_and_whose_it_is(
    master: FakeMaster, engine: str, docker_agent: Agent
) -> None:
    limited = with_contexts(task(script("sleep 100")), resources=Resources(cpus_milli=500, memory_bytes=64 * 1024**2))
    assign = await master.assign(limited)
    await master.until(lambda: master.heard(StepStarted))
    started = next(event for event in master.events if isinstance(event, StepStarted))
    async with client_of(engine) as client:
        known = await client.inspect(started.container)
    assert known is not None
    host = known["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["MemorySwap"]) == (500_000_000, 64 * 1024**2, 64 * 1024**2)
    assert (host["Privileged"], host["AutoRemove"], host["PidsLimit"]) == (False, False, 16_384)
    assert known["Name"] == f"/pistage-{assign.attempt_id}-c1"
    assert {key: value for key, value in known["Config"]["Labels"].items() if key != "pistage.fixture"} == {
        "pistage.cluster": master.cluster_id,
        "pistage.agent": docker_agent.agent_id,
        "pistage.run": assign.run_id,
        "pistage.task": "a task",
        "pistage.attempt": assign.attempt_id,
        "pistage.fence": str(assign.fence),
        "pistage.context": "c1",
    }
    await master.send(Cancel(attempt_id=assign.attempt_id, reason="seen enough"))
    await master.finished(assign)


# --- networks, volumes, services -------------------------------------------------------------------------------


async def test_containers_of_a_network_find_each_other_by_their_aliases(master: FakeMaster) -> None:
    server = script("echo hello > index.html; httpd -f -p 80", context="server", is_async=True, timeout_s=20)
    client = script("until wget -q -O - http://web/ 2>/dev/null; do sleep 0.1; done", id="2", context="client")
    end_server = script("wget -q -O - http://other/index.html", id="3", context="client")
    body = Block(kind="sequence", children=(Block(kind="parallel", children=(server, client)), end_server))
    contexts = (
        Context(id="server", image="busybox", networks=(Attachment(network="net", aliases=("web", "other")),)),
        Context(id="client", image="busybox", networks=(Attachment(network="net"), Attachment(network="second"))),
    )
    assign = await master.assign(
        Task(name="t", body=body, contexts=contexts), networks=(Network(name="net"), Network(name="second"))
    )
    await master.until(lambda: b"hello" in master.stdout(assign.attempt_id, "2"))
    await master.send(Cancel(attempt_id=assign.attempt_id, reason="the server would serve for ever"))
    end = await master.finished(assign)
    assert end.result.state is State.CANCELLED
    await master.send(Release(run_id=assign.run_id))


async def test_tasks_of_a_run_share_its_volumes_until_it_is_released(
    master: FakeMaster, engine: str, docker_agent: Agent
) -> None:
    def using(text: str, *, is_read_only: bool = False) -> Task:
        mount = Mount(kind="volume", source="data", target="/data", is_read_only=is_read_only)
        return with_contexts(task(script(text)), mounts=(mount,))

    run = {"run_id": new_id(), "volumes": (Volume(name="unused"), Volume(name="data"))}
    first = await master.run(using("echo kept > /data/file"), **run)
    second = await master.run(using("cat /data/file; touch /data/x", is_read_only=True), **run)
    assert first.result.state is State.SUCCEEDED
    assert master.stdout(second.attempt_id) == b"kept\n"
    assert b"Read-only" in master.stderr(second.attempt_id)
    async with client_of(engine) as client:
        (volume,) = await client.listed("volumes", [f"pistage.agent={docker_agent.agent_id}"])
    assert volume["Name"] == f"pistage-{run['run_id']}-1"
    await master.send(Release(run_id=str(run["run_id"])))


async def test_what_a_run_left_is_removed_when_the_agent_comes_back_and_nothing_of_others(
    master: FakeMaster, engine: str, docker_agent: Agent, start_agent: StartAgent, stop_agent: StopAgent
) -> None:
    mount = Mount(kind="volume", source="data", target="/data")
    using = with_contexts(task(script("true")), mounts=(mount,))
    end = await master.run(using, volumes=(Volume(name="data"),))
    assert end.result.state is State.SUCCEEDED
    stranger = {"pistage.agent": new_id(), "pistage.cluster": master.cluster_id, "pistage.run": new_id()}
    other_cluster = {"pistage.agent": docker_agent.agent_id, "pistage.cluster": new_id(), "pistage.run": new_id()}
    async with client_of(engine) as client:
        for number, labels in enumerate([stranger, other_cluster, {}]):
            body = {"Name": f"foreign-{new_id()}", "Labels": labels | {"test": str(number), "pistage.test": "yes"}}
            await client.json("POST", "volumes/create", body=body)
        await stop_agent(docker_agent)
        master.live_runs.clear()
        again = await start_agent("docker", engine=engine)
        own = [f"pistage.agent={again.agent_id}", f"pistage.cluster={master.cluster_id}"]
        await until_empty(client, own)
        foreign = await client.listed("volumes", ["pistage.test=yes"])
        for volume in foreign:
            await client.json("DELETE", f"volumes/{volume['Name']}")
    assert sorted(volume["Labels"]["test"] for volume in foreign) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("changes", "fields", "word"),
    [
        ({"networks": (Attachment(network="host"),)}, {"networks": (Network(name="host", is_external=True),)}, "host"),
        (
            {"networks": (Attachment(network="container:x"),)},
            {"networks": (Network(name="container:x", is_external=True),)},
            "container:x",
        ),
        ({"networks": (Attachment(network="n"),)}, {"networks": (Network(name="n", driver="macvlan"),)}, "macvlan"),
        (
            {"mounts": (Mount(kind="volume", source="v", target="/v"),)},
            {"volumes": (Volume(name="pistage-other-0", is_external=True), Volume(name="v", driver="local"))},
            "belongs to another run",
        ),
        ({"mounts": (Mount(kind="bind", source="/etc", target="/e"),)}, {}, "bind_paths"),
        ({"mounts": (Mount(kind="bind", source="/var/run/docker.sock", target="/s"),)}, {}, "bind_paths"),
    ],
    ids=["host network", "another's network", "driver", "another run's volume", "bind", "socket"],
)
async def test_what_the_policy_forbids_is_refused_with_a_reason(
    master: FakeMaster, changes: dict[str, Any], fields: dict[str, Any], word: str
) -> None:
    assign = await master.assign(with_contexts(task(script("true")), **changes), **fields)
    end = await master.finished(assign)
    assert end.result.failure is FailureClass.REFUSED, end.result.reason
    assert word in end.result.reason
    await master.send(Release(run_id=assign.run_id))


async def test_a_service_is_ready_before_the_first_step_and_goes_with_the_last(master: FakeMaster) -> None:
    service = Service(
        name="web",
        image="busybox",
        command=("sh", "-c", "mkdir /w; sleep 0.5; echo $WHO > /w/index.html; httpd -f -h /w"),
        env={"WHO": "service"},
        health=HealthCheck(command="wget -q -O - http://localhost/", interval_s=0.2, retries=20),
    )
    end = await master.run(task(script("wget -q -O - http://web/"), services=(service,)))
    assert end.result.state is State.SUCCEEDED, end.result.reason
    assert master.stdout(end.attempt_id) == b"service\n"


async def test_a_service_that_ends_fails_the_task_by_its_name(master: FakeMaster) -> None:
    service = Service(name="db", image="busybox", command=("sh", "-c", "exit 4"), health=HealthCheck(command="false"))
    end = await master.run(task(script("echo never"), services=(service,)))
    assert end.result.reason == "service db ended with exit code 4"
    assert master.steps_of(end.attempt_id)["1"].result.state is State.SKIPPED


# --- when things go away ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
async def test_a_container_removed_by_somebody_is_an_attempt_lost(
    master: FakeMaster, engine: str, is_shared: bool
) -> None:
    assign = await master.assign(task(script("sleep 100"), *([script("true", id="2")] if is_shared else [])))
    await master.until(lambda: master.heard(StepStarted))
    async with client_of(engine) as client:
        await client.remove(f"pistage-{assign.attempt_id}-c1")
    end = await master.finished(assign)
    # An engine that removes a running container may still tell that it was killed.
    assert end.result.state is State.LOST or end.result.exit_code == 137


async def test_a_stale_fence_removes_the_container(master: FakeMaster, engine: str, docker_agent: Agent) -> None:
    assign = await master.assign(task(script("echo on; sleep 100"), script("true", id="2")))
    await master.until(lambda: b"on" in master.stdout(assign.attempt_id))
    other = await master.assign(task(script("echo other")))
    master.refused.add(assign.attempt_id)
    await master.finished(other)
    master.events.clear()
    await master.hang_up()  # whatever is reported again is refused
    master.unwanted.add(assign.attempt_id)
    await nothing_left(engine, docker_agent.agent_id)
    assert master.end_of(assign) is None


async def test_output_that_is_not_read_does_not_keep_a_container_alive(master: FakeMaster) -> None:
    assign = await master.assign(task(script("yes")))
    await master.until(lambda: len(master.stdout(assign.attempt_id)) > 100_000)
    master.is_deaf = True
    await asyncio.sleep(1)  # until nothing moves any more: the outbox is full
    await master.send(Cancel(attempt_id=assign.attempt_id, reason="too loud"))
    await asyncio.sleep(0.5)
    master.is_deaf = False
    await master.hang_up()
    end = await master.finished(assign)
    assert end.result.state is State.CANCELLED
    master.check_output(assign.attempt_id)


async def test_zombies_in_a_shared_container_are_reaped(master: FakeMaster) -> None:
    steps = [
        script("for i in 1 2 3 4 5; do (sleep 0.1 &) ; done"),
        script("sleep 1; ps -o stat | grep -c Z || true", id="2"),
    ]
    end = await master.run(task(*steps))
    assert master.stdout(end.attempt_id, "2") == b"0\n"


async def test_an_image_without_tee_still_shares_its_container(master: FakeMaster) -> None:
    hide = script("rm /usr/bin/tee /usr/bin/mkfifo")
    end = await master.run(task(hide, script("echo out; echo err >&2; exit 6", id="2")))
    assert end.result.exit_code == 6
    assert (master.stdout(end.attempt_id, "2"), master.stderr(end.attempt_id, "2")) == (b"out\n", b"err\n")


async def test_nobody_can_print_a_trailer_by_chance(master: FakeMaster) -> None:
    end = await master.run(task(script("printf '\\001abc:0\\n'; exit 3"), script("true", id="2")))
    assert master.stdout(end.attempt_id) == b"\x01abc:0\n"
    assert end.result.exit_code == 3


async def test_names_from_a_document_are_never_more_than_text(master: FakeMaster) -> None:
    odd = "../../etc; $(reboot) \u202e\n'\""
    step = Step(id="1", name=odd, context="c1", script='printf %s "$PISTAGE_STEP"')
    base = replace(task(step), name=odd)
    assign = await master.assign(base, run_name=odd)
    end = await master.finished(assign)
    assert end.result.state is State.SUCCEEDED, end.result.reason
    assert master.stdout(end.attempt_id).decode() == odd


@pytest.mark.slow
@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("beyond", [20_000, 100_000, 400_000])
async def test_a_command_that_ends_while_nobody_takes_its_output_loses_none(
    master: FakeMaster, beyond: int, is_shared: bool
) -> None:
    # The outbox is full, what is beyond it is in the engine's hands, and the engine lets go two seconds after the end.
    size = limits.OUTBOX_BYTES_MAX + beyond
    text = f"head -c {size} /dev/urandom > f; sha256sum < f; cat f >&2"
    master.log_refusal = LogRefused(attempt_id="", step="", stream=1, reason="the disk is full")
    assign = await master.assign(task(script(text), *([script("true", id="2")] if is_shared else [])))
    await master.until(lambda: master.heard(StepStarted))
    await asyncio.sleep(6)
    master.log_refusal = None
    end = await master.finished(assign)
    assert end.result.state is State.SUCCEEDED, end.result.reason
    held = master.stderr(assign.attempt_id)
    assert len(held) == size
    assert hashlib.sha256(held).hexdigest() == master.stdout(assign.attempt_id).split()[0].decode()
    master.check_output(assign.attempt_id)


async def test_a_cancel_at_any_moment_of_the_start_leaves_nothing(master: FakeMaster) -> None:
    steps = [script("sleep 100"), script("true", id="2")]
    for number in range(16):
        assign = await master.assign(task(*steps[: 1 + number % 2]))
        await asyncio.sleep(number * 0.02)  # the moment is what is tested
        await master.send(Cancel(attempt_id=assign.attempt_id, reason="never mind"))
        end = await master.finished(assign)
        assert end.result.state is State.CANCELLED


@pytest.mark.parametrize("steps", [1, 2], ids=["own", "shared"])
async def test_what_is_printed_before_the_engine_has_said_that_it_runs_is_kept_though_it_is_cancelled(
    master: FakeMaster, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    may_answer, is_asked = asyncio.Event(), asyncio.Event()
    start, start_exec, request = Engine.start, Engine.start_exec, Brake.request

    async def late_start(engine: Engine, container: str) -> None:
        await start(engine, container)
        await (may_answer.wait() if steps == 1 else asyncio.sleep(0))

    async def late_start_exec(engine: Engine, exec_id: str) -> Stream:
        stream = await start_exec(engine, exec_id)
        await may_answer.wait()
        return stream

    def noted_request(brake: Brake, stop: Stop) -> None:
        request(brake, stop)
        is_asked.set()

    monkeypatch.setattr(Engine, "start", late_start)
    monkeypatch.setattr(Engine, "start_exec", late_start_exec)
    monkeypatch.setattr(Brake, "request", noted_request)
    commands = [script("echo printed; trap 'echo stopped; exit 3' TERM; sleep 100 & wait"), script("true", id="2")]
    assign = await master.assign(task(*commands[:steps]))
    async with client_of(os.environ["DOCKER_HOST"]) as client:
        await until_it_sleeps(client, assign.attempt_id)
    await master.send(Cancel(attempt_id=assign.attempt_id, reason="never mind"))
    await is_asked.wait()
    may_answer.set()
    end = await master.finished(assign)
    assert end.result.state is State.CANCELLED
    assert master.stdout(assign.attempt_id) == b"printed\nstopped\n"
    master.check_output(assign.attempt_id)


async def until_it_sleeps(client: Engine, attempt_id: str) -> None:
    """Nobody says when it has printed, for the engine has not even said that it runs: it is asked again."""
    async with asyncio.timeout(20):
        while True:
            for one in await client.listed("containers", [f"pistage.attempt={attempt_id}"]):
                if one["State"] == "running" and "sleep 100" in str(
                    await client.json("GET", f"containers/{one['Id']}/top")
                ):
                    return
            await asyncio.sleep(0.05)
