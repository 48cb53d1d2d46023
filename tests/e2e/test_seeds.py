"""Every block of the two seed documents, registered and run in real containers, told from the engine's own records."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pistage.core.definition import document_name
from tests.e2e.processes import Processes, a_cluster, ended
from tests.e2e.watching import Watch, watching
from tests.master.fakes import Api

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(180)]

SEEDS = Path(__file__).parent.parent / "fixtures" / "seeds"
CLONE = "git clone git@github.com:projecteru2/pistages.git"


@asynccontextmanager
async def a_seed_cluster(tmp_path: Path, engine: Any) -> AsyncIterator[tuple[Processes, Api, Watch]]:
    async with a_cluster(tmp_path) as (owned, api), watching(engine) as watch:
        for name in ("clone-repo-fixed", "clone-pistages", "clone-repo-or-pistages"):
            text = (SEEDS / f"{name}.yaml").read_bytes()
            status, put = await api.call("PUT", f"/api/v1/actions/{document_name(text)}", data=text)
            assert status == 201, put
        yield owned, api, watch


async def run(api: Api, name: str) -> dict[str, Any]:
    made = await api.submit((SEEDS / name).read_text())
    done = await ended(api, made["id"])
    assert done["state"] == "succeeded", json.dumps(done, indent=1)
    return done


@pytest.mark.parametrize(
    ("document", "image", "script"),
    [
        ("clone-repo-fixed.yaml", "alpine/git", CLONE),
        ("clone-pistages.yaml", "alpine/git", CLONE),
        ("build-with-image.yaml", "bitnami/git", CLONE),
        ("clone-repo-or-pistages.yaml", "alpine/git", CLONE),
        ("build-with-default.yaml", "bitnami/git", CLONE),
        ("build-inherits-image.yaml", "alpine/git", CLONE),
    ],
)
async def test_a_block_runs_as_written_in_one_container(
    tmp_path: Path, engine: Any, document: str, image: str, script: str
) -> None:
    async with a_seed_cluster(tmp_path, engine) as (_, api, watch):
        done = await run(api, document)
        (container,) = watch.containers_of(done["id"])
        assert container["Config"]["Image"] == image
        assert container["Config"]["Entrypoint"][0] == "/bin/sh"
        assert script in [*container["Config"]["Entrypoint"], *(container["Config"]["Cmd"] or [])]
        assert container["Config"]["WorkingDir"] == "/workspace"
        assert watch.execs_of(container) == []


async def test_a_parameter_given_beside_dep_is_what_is_cloned(tmp_path: Path, engine: Any) -> None:
    async with a_seed_cluster(tmp_path, engine) as (_, api, watch):
        text = (SEEDS / "clone-repo.yaml").read_bytes()
        assert (await api.call("PUT", "/api/v1/actions/Clone Repo", data=text))[0] == 201
        done = await run(api, "build-with-repo.yaml")
        (container,) = watch.containers_of(done["id"])
        assert container["Config"]["Image"] == "bitnami/git"
        assert "git clone git@github.com:anrs/aa.git" in json.dumps(container["Config"])


async def test_an_action_that_wants_a_parameter_is_refused_alone_and_runs_with_it(tmp_path: Path, engine: Any) -> None:
    async with a_seed_cluster(tmp_path, engine) as (_, api, watch):
        text = (SEEDS / "clone-repo.yaml").read_text()
        status, refused = await api.call("POST", "/api/v1/runs", data=text)
        assert status == 422 and "repo" in refused["detail"]
        body = json.dumps({"definition": text, "with": {"repo": "git@github.com:anrs/aa.git"}})
        done = await ended(api, (await api.submit(body))["id"])
        assert done["state"] == "succeeded"
        assert len(watch.containers_of(done["id"])) == 1


async def test_build_and_lint_makes_two_containers_at_once_with_two_commands_in_each(
    tmp_path: Path, engine: Any
) -> None:
    async with a_seed_cluster(tmp_path, engine) as (_, api, watch):
        done = await run(api, "build-and-lint.yaml")
        containers = watch.containers_of(done["id"])
        assert [container["Config"]["Image"] for container in containers] == ["alpine/git"] * 2
        seen = [[[part for part in (CLONE, "make build", "make lint") if part in text] for text in watch.execs_of(each)]
                for each in containers]  # fmt: skip
        assert sorted(seen) == [[[CLONE], ["make build"]], [[CLONE], ["make lint"]]]
        await watch.until_clean()
        first, second = (watch.life_of(container) for container in containers)
        assert first[0] < second[1] and second[0] < first[1]
        async with api.session.get(f"{api.url}/api/v1/runs/{done['id']}/logs") as response:
            text = await response.text()
        assert "make: build" in text and "make: lint" in text


async def test_the_pipeline_json_runs_in_its_image_on_its_network(tmp_path: Path, engine: Any) -> None:
    async with a_seed_cluster(tmp_path, engine) as (owned, api, watch):
        done = await run(api, "test.json")
        (container,) = watch.containers_of(done["id"])
        assert container["Config"]["Image"] == "java-pipeline:1.0.1"
        assert container["Config"]["Entrypoint"] == ["/usr/bin/java-pipeline"]
        assert container["Config"]["Cmd"] == ["--defaults"]
        (network,) = [each for each in watch.networks if each["Labels"]["pistage.run"] == done["id"]]
        assert (network["Driver"], network["Name"] != "pipeline_default") == ("bridge", True)
        assert container["HostConfig"]["NetworkMode"] == network["Name"]
        assert "default" in container["NetworkSettings"]["Networks"][network["Name"]]["Aliases"]
        code, out, _ = await owned.cli("logs", done["id"])
        assert (code, out) == (0, b"java-pipeline 1.0.1 in /workspace with: --defaults\n")
        await watch.until_clean()


async def test_a_volume_is_shared_by_the_tasks_that_name_it_and_removed_after_the_run(
    tmp_path: Path, engine: Any
) -> None:
    document = json.loads((SEEDS / "test.json").read_text())
    (task,) = document["pipelineTasks"]
    (step,) = task["steps"]
    step |= {
        "image": "busybox",
        "volumes": ["pipeline_default:/data"],
        "command": ["sh", "-c", "echo kept > /data/file"],
    }
    reading = step | {
        "volumes": ["pipeline_default:/data:ro"],
        "command": ["sh", "-c", "cat /data/file; echo x > /data/file"],
    }
    after = {"name": "after", "dependencies": [task["name"]], "steps": [reading]}
    document["pipelineTasks"].append(after)
    async with a_seed_cluster(tmp_path, engine) as (_, api, watch):
        done = await ended(api, (await api.submit(json.dumps(document)))["id"])
        assert done["state"] == "failed"
        async with api.session.get(f"{api.url}/api/v1/runs/{done['id']}/logs?task=after&attempt=1") as response:
            text = await response.text()
        assert "kept\n" in text and "Read-only" in text  # which of two streams comes first is chance
        (volume,) = [each for each in watch.volumes if each["Labels"]["pistage.run"] == done["id"]]
        assert (volume["Driver"], volume["Name"] != "pipeline_default") == ("local", True)
        await watch.until_clean()


async def test_an_alias_is_resolved_from_another_task_of_the_run(tmp_path: Path, engine: Any) -> None:
    document = json.loads((SEEDS / "test.json").read_text())
    (task,) = document["pipelineTasks"]
    (step,) = task["steps"]
    step |= {"image": "busybox", "command": ["nc", "-l", "-p", "7777", "-e", "echo", "heard"]}
    ask = "for i in 1 2 3 4 5 6 7 8 9; do nc default 7777 </dev/null && exit 0; sleep 0.5; done; exit 1"
    asking = step | {"name": "ask", "networks": [{"name": "pipeline_default"}], "command": ["sh", "-c", ask]}
    document["pipelineTasks"].append({"name": "asking", "steps": [asking]})
    async with a_seed_cluster(tmp_path, engine) as (_, api, watch):
        done = await ended(api, (await api.submit(json.dumps(document)))["id"])
        assert done["state"] == "succeeded", done
        async with api.session.get(f"{api.url}/api/v1/runs/{done['id']}/logs?task=asking&stream=stdout") as response:
            assert await response.text() == "heard\n"
        assert len([each for each in watch.networks if each["Labels"]["pistage.run"] == done["id"]]) == 1
        await watch.until_clean()


async def test_ping_starts_while_sleep_still_runs_in_the_same_container(tmp_path: Path, engine: Any) -> None:
    sleep = "name: Sleep\nimage: alpine\nasync: true\nrun: sleep {{ .duration }}\nwith: {duration: 16}\n"
    ping = (
        "name: Ping\nuses:\n"
        "  one: [{dep: Sleep, with: {duration: 2}}, {run: echo ping one}]\n"
        "  two: [{dep: Sleep, with: {duration: 2}}, {run: echo ping two}]\n"
    )
    async with a_seed_cluster(tmp_path, engine) as (_, api, watch):
        assert (await api.call("PUT", "/api/v1/actions/Sleep", data=sleep))[0] == 201
        done = await ended(api, (await api.submit(ping))["id"])
        assert done["state"] == "succeeded"
        assert len(watch.containers_of(done["id"])) == 2
        for task in done["tasks"]:
            slept, pinged = task["attempts"][0]["steps"]
            assert slept["container"] == pinged["container"]
            assert pinged["finished_at"] < slept["finished_at"]


async def test_many_runs_at_once_leave_nothing_behind(tmp_path: Path, engine: Any) -> None:
    async with a_seed_cluster(tmp_path, engine) as (_, api, watch):
        runs = await asyncio.gather(*(api.submit((SEEDS / "test.json").read_text()) for _ in range(6)))
        done = await asyncio.gather(*(ended(api, each["id"], 100) for each in runs))
        assert {each["state"] for each in done} == {"succeeded"}
        assert sorted(each["number"] for each in done) == [1, 2, 3, 4, 5, 6]
        await watch.until_clean()
