"""J2 to J10: pipeline JSON, in both spellings, as tasks."""

import json

import pytest

from pistage.core.cron import Schedule
from pistage.core.definition import lint
from pistage.core.plan import Attachment, Mount, Plan, RegistryAuth, Volume, When, environment_of, redacted
from tests.core.definition.documents import plan_of, planned, refused


def pipeline(*tasks: dict[str, object], **keys: object) -> str:
    return json.dumps({"name": "p", "pipelineTasks": list(tasks), **keys}, indent=1)


def task(name: str = "t", *dependencies: str, **step: object) -> dict[str, object]:
    return {"name": name, "dependencies": list(dependencies) or None, "steps": [{"name": "s", "image": "i", **step}]}


def step_plan(**step: object) -> Plan:
    return plan_of(pipeline(task(**step)))


def when(**step: object) -> When:
    return next(step_plan(**step).tasks[0].steps()).when


SNAKE = """\
name: p
pipeline:
  - name: t
    steps:
      - name: s
        image: i
        working_dir: /w
        entry_point: [/bin/e]
        command: a 'b c'
        on_success: false
        on_failure: true
        auth_config: {username: u, password: p, serveraddress: r}
        environment: {A: 1}
"""


def test_j2_both_spellings_and_yaml_mean_the_same() -> None:
    camel = pipeline(
        task(
            workingDir="/w",
            entryPoint=["/bin/e"],
            command=["a", "b c"],
            onSuccess=False,
            onFailure=True,
            authConfig={"username": "u", "password": "p", "serveraddress": "r"},
            environment={"A": 1},
        )
    )
    assert plan_of(SNAKE) == plan_of(camel)
    assert plan_of(SNAKE.replace("entry_point", "entrypoint")) == plan_of(camel)


def test_j2_null_is_absent() -> None:
    nulls = dict.fromkeys(
        [
            "alias",
            "entryPoint",
            "command",
            "volumes",
            "networks",
            "onSuccess",
            "onFailure",
            "authConfig",
            "environment",
            "environmentString",
            "workingDir",
        ]
    )
    assert step_plan(**nulls) == step_plan()


def test_j2_null_is_absent_in_the_other_spelling_too() -> None:
    text = '{"name": "p", "pipeline": null, "uses": null, "pipelineTasks": [{"name": "t", "steps": [%s]}]}'
    for step in (
        '{"image": "i", "workingDir": null, "working_dir": "/b"}',
        '{"image": "i", "working_dir": "/b", "workdir": null}',
    ):
        assert next(plan_of(text % step).tasks[0].steps()).workdir == "/b"


def test_j3_dependencies_make_a_graph_and_steps_have_containers_of_their_own() -> None:
    plan = plan_of(pipeline(task("a"), task("b", "a"), task("c", "a"), task("d", "b", "c", "b")))
    assert {each.name: each.needs for each in plan.tasks} == {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}
    two = {"name": "t", "steps": [{"image": "i"}, {"image": "i"}]}
    (only,) = plan_of(pipeline(two)).tasks
    assert [(step.id, step.name, step.context) for step in only.steps()] == [
        ("1", "step 1", "c1"),
        ("2", "step 2", "c2"),
    ]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, When.SUCCESS),
        ({"onSuccess": False}, When.SUCCESS),
        ({"onSuccess": True}, When.SUCCESS),
        ({"onFailure": False}, When.SUCCESS),
        ({"onFailure": True}, When.ALWAYS),
        ({"onSuccess": True, "onFailure": True}, When.ALWAYS),
        ({"onSuccess": False, "onFailure": True}, When.FAILURE),
        ({"onSuccess": False, "onFailure": False}, When.SUCCESS),
    ],
)
def test_j4_on_success_and_on_failure_are(flags: dict[str, bool], expected: When) -> None:
    assert when(**flags) is expected


DIAMOND = (task("a"), task("b", "a"), task("c", "a"), task("d", "b", "c"), task("lone"), task("e", "d"))


def test_j5_start_node_skips_all_that_it_depends_on_and_nothing_else() -> None:
    plan = plan_of(pipeline(*DIAMOND, startNode="d"))
    skipped = {each.name for each in plan.tasks if each.skip_reason is not None}
    assert skipped == {"a", "b", "c"}
    assert plan.start_node == "d"
    assert plan.task_of("a").skip_reason == "the run starts at 'd', which comes after it"


def test_j5_the_start_given_to_the_run_overrides_the_documents() -> None:
    plan = planned(pipeline(*DIAMOND, startNode="d"), start_node="b").plan
    assert {each.name for each in plan.tasks if each.skip_reason is not None} == {"a"}
    assert plan.start_node == "b"


def test_j5_groups_may_be_started_at_too() -> None:
    text = "name: a\nuses:\n  one: [{image: i, run: x}]\n  two: {needs: one, steps: [{image: i, run: y}]}\n"
    plan = planned(text, start_node="two").plan
    assert [each.skip_reason is None for each in plan.tasks] == [False, True]


def test_j6_tasks_that_share_a_network_or_a_volume_are_one_gang() -> None:
    plan = plan_of(
        pipeline(
            task("a", networks=[{"name": "n"}]),
            task("b", networks=["n"], volumes=["v:/v"]),
            task("c", volumes=["v:/w:ro"]),
            task("d", volumes=["w:/w"]),
            task("e", volumes=["/srv:/srv"]),
            task("f", volumes=["/srv:/srv"]),
            task("g", networks=["m"]),
            task("h", networks=["m"]),
        )
    )
    gangs = {each.name: each.gang for each in plan.tasks}
    assert gangs == {"a": "g1", "b": "g1", "c": "g1", "d": None, "e": None, "f": None, "g": "g2", "h": "g2"}


def test_j6_volumes_and_networks_of_a_step() -> None:
    plan = step_plan(volumes=["data:/data:ro", "/srv/x:/x"], networks=[{"name": "n", "aliases": ["a", "b"]}])
    (context,) = plan.tasks[0].contexts
    assert context.mounts == (
        Mount(kind="volume", source="data", target="/data", is_read_only=True),
        Mount(kind="bind", source="/srv/x", target="/x"),
    )
    assert context.networks == (Attachment(network="n", aliases=("a", "b")),)


def test_j6_external_is_kept() -> None:
    plan = plan_of(pipeline(task(), volumes=[{"name": "v", "external": True}, "w"]))
    assert plan.volumes == (Volume(name="v", is_external=True), Volume(name="w"))


def test_j7_defaults() -> None:
    (step,) = step_plan(entryPoint=None, command=None).tasks[0].steps()
    assert (step.script, step.entrypoint, step.command, step.workdir) == (None, None, None, "/workspace")


def test_j8_environment_wins_over_environment_string() -> None:
    plan = step_plan(environment={"A": 1, "B": True}, environmentString=["A=2", "C=x=y", "D="])
    (step,) = plan.tasks[0].steps()
    assert dict(step.env) == {"A": "1", "B": "true", "C": "x=y", "D": ""}


SECRET = "hunter2-very-secret"


def test_j9_auth_is_carried_and_an_empty_one_is_anonymous() -> None:
    plan = step_plan(authConfig={"username": "u", "password": SECRET, "serveraddress": "https://r"})
    assert plan.tasks[0].contexts[0].auth == RegistryAuth(username="u", password=SECRET, server_address="https://r")
    assert step_plan(authConfig={}).tasks[0].contexts[0].auth is None


@pytest.mark.parametrize(
    "auth",
    [
        SECRET,
        [SECRET],
        {"password": [SECRET]},
        {"password": {"a": SECRET}},
        {"passwort": SECRET},
        {SECRET: "x"},
        {"username": "u", "password": SECRET},
    ],
)
def test_j9_auth_is_never_in_a_finding_a_message_or_a_repr(auth: object) -> None:
    text = pipeline(task(authConfig=auth, onFailure=5), unknown=1)
    findings = refused(text)
    assert SECRET not in str(findings)
    assert SECRET not in str(lint(text, actions=None).findings)
    fine = pipeline(task(authConfig={"username": "u", "password": SECRET}))
    assert SECRET not in repr(plan_of(fine)) and SECRET not in repr(redacted(plan_of(fine)))


def test_j9_a_fault_of_syntax_does_not_show_what_follows_it() -> None:
    for text in (
        f'{{"password" "{SECRET}"}}',
        f'{{"a": {SECRET}}}',
        f'{{"a": "{SECRET}\n"}}',
        f'{{"a": "b" {SECRET}: x}}',
    ):
        assert SECRET not in str(refused(text))


def test_j10_a_crontab_makes_a_schedule() -> None:
    assert schedules_in(crontab="30 2 * * *") == [Schedule(cron="30 2 * * *")]
    once = schedules_in(crontab="@daily", runOnce=True, timezone="Asia/Shanghai")
    assert once == [Schedule(cron="@daily", timezone="Asia/Shanghai", is_once=True)]
    assert schedules_in(runOnce=True) == []


def schedules_in(**keys: object) -> list[Schedule]:
    found = lint(pipeline(task(), **keys), actions=None)
    assert not found.findings
    return list(found.schedules.values())


def test_output_of_the_original_is_ignored_without_a_word() -> None:
    text = pipeline(task(), id="x", isAvailable=0, runningPipelines=[1], finishedPipeliens=[{}], finished=True)
    assert planned(text).findings == ()


def test_a_pipeline_has_no_templates_and_its_parameters_are_in_the_environment() -> None:
    plan = plan_of(pipeline(task(command=["docker", "ps", "--format", "{{.ID}}"])), None, {"day": "2024-01-01"})
    (step,) = plan.tasks[0].steps()
    assert step.command == ("docker", "ps", "--format", "{{.ID}}")
    assert environment_of(step) == {"PISTAGE_PARAM_DAY": "2024-01-01"}


def test_labels_and_resources_work_in_pipelines_too() -> None:
    one = {
        "name": "t",
        "agent": "gpu=true",
        "resources": {"cpus": 2},
        "retry": 3,
        "steps": [{"image": "i"}, {"image": "j"}],
    }
    (only,) = plan_of(pipeline(one, priority=5, queue="gpu")).tasks
    assert (only.constraints[0].key, only.resources.cpus_milli) == ("gpu", 2000)
