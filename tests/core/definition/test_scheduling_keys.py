"""The keys that say when and where a task may run: concurrency, partitions, waiting, memory, labels."""

import json
import re
from pathlib import Path

import pytest

from pistage.core import limits
from pistage.core.definition import lint
from pistage.core.definition.fields import ELSEWHERE
from pistage.core.plan import (
    Backoff,
    Concurrency,
    Constraint,
    FailureClass,
    MemoryGrowth,
    OnPartition,
    Overflow,
    Plan,
    Retry,
    Task,
)
from tests.core.definition.documents import library, only_task, plan_of, planned, refused

LEAF = "name: Ship It, Now\nimage: i\nrun: x\n"
README = Path(__file__).parents[3] / "README.md"


def pipeline(task: dict[str, object] | None = None, step: dict[str, object] | None = None, **keys: object) -> str:
    steps = [{"image": "i", **(step or {})}]
    return json.dumps(
        {"name": "Ship It, Now", "pipelineTasks": [{"name": "t", "steps": steps, **(task or {})}], **keys}
    )


def codes(text: str) -> list[tuple[str, str, str]]:
    return [(each.severity, each.code, each.path) for each in planned(text).findings]


# --- concurrency -----------------------------------------------------------------------------------------------

CONCURRENCY = [
    ("deploy", Concurrency(group="deploy")),
    (2, Concurrency(group="Ship It, Now", limit=2)),
    ({}, Concurrency(group="Ship It, Now")),
    ({"limit": 3}, Concurrency(group="Ship It, Now", limit=3)),
    ({"group": "deploy"}, Concurrency(group="deploy")),
    ({"group": "Deploys of team a/b", "limit": 10_000}, Concurrency(group="Deploys of team a/b", limit=10_000)),
    ({"group": "d", "overflow": "queue"}, Concurrency(group="d")),
    ({"group": "d", "overflow": "cancel-old"}, Concurrency(group="d", overflow=Overflow.CANCEL_OLD)),
    ({"limit": 2, "overflow": "refuse"}, Concurrency(group="Ship It, Now", limit=2, overflow=Overflow.REFUSE)),
    (None, None),
]


@pytest.mark.parametrize(("value", "expected"), CONCURRENCY)
def test_concurrency_is_a_group_a_number_or_both(value: object, expected: Concurrency | None) -> None:
    assert plan_of(f"{LEAF}concurrency: {json.dumps(value)}\n").concurrency == expected
    assert plan_of(pipeline(concurrency=value)).concurrency == expected


def test_a_definition_that_says_nothing_has_no_group() -> None:
    assert plan_of(LEAF).concurrency is None
    assert plan_of(pipeline()).concurrency is None


def test_a_group_may_be_named_after_what_the_run_is_given() -> None:
    text = f'{LEAF}concurrency: {{group: "deploy-{{{{ .env }}}}", limit: "{{{{ .n }}}}"}}\nwith: {{n: 4}}\n'
    assert plan_of(text, None, {"env": "prod"}).concurrency == Concurrency(group="deploy-prod", limit=4)
    assert [(each["code"], each["path"]) for each in refused(text)] == [("missing-parameter", "concurrency.group")]
    short = f'{LEAF}concurrency: "{{{{ .env }}}}"\n'
    assert plan_of(short, None, {"env": "7"}).concurrency == Concurrency(group="7")


@pytest.mark.parametrize(("env", "code"), [("a" * 201, "bad-name"), ("a\nb", "bad-name"), (" ", "empty")])
def test_a_rendered_group_is_a_name_too(env: str, code: str) -> None:
    text = f'{LEAF}concurrency: {{group: "{{{{ .env }}}}"}}\n'
    (finding,) = refused(text, None, {"env": env})
    assert (finding["code"], finding["line"], finding["column"]) == (code, 4, 22)


def test_lint_needs_the_parameters_of_a_group_and_finds_no_fault_with_it() -> None:
    found = lint(f'{LEAF}concurrency: {{group: "deploy-{{{{ .env }}}}"}}\n', actions=None)
    assert (found.findings, found.parameters_needed) == ((), ("env",))


def test_a_pipeline_has_no_templates_in_its_group_either() -> None:
    assert plan_of(pipeline(concurrency="{{ .x }}")).concurrency == Concurrency(group="{{ .x }}")


def test_what_a_used_action_says_of_its_own_runs_is_not_its_callers() -> None:
    action = (
        "name: Act\nconcurrency: {group: '{{ .unheard_of }}', overflow: refuse}\npriority: 9\nqueue: slow\n"
        "on_partition: continue\nqueue_timeout: 1m\nimage: i\nrun: x\n"
    )
    result = planned("name: a\nuses: {main: [{dep: Act}]}\n", {"Act": action})
    plan = result.plan
    assert (plan.concurrency, plan.priority, plan.queue) == (None, 0, "default")
    assert (plan.tasks[0].on_partition, plan.tasks[0].queue_timeout_s) == (OnPartition.KILL, None)
    assert result.findings == ()


# --- on_partition and queue_timeout ----------------------------------------------------------------------------

NEAREST = """\
name: a
on_partition: continue
queue_timeout: 10m
uses:
  near:
    on_partition: kill
    queue_timeout: 90s
    steps: [{image: i, run: x}]
  far: [{image: i, run: x}]
"""


def waits(task: Task) -> tuple[OnPartition, float | None]:
    return task.on_partition, task.queue_timeout_s


def test_the_group_is_nearer_than_the_definition() -> None:
    near, far = plan_of(NEAREST).tasks
    assert waits(near) == (OnPartition.KILL, 90)
    assert waits(far) == (OnPartition.CONTINUE, 600)


def test_a_definition_without_groups_is_its_own_task() -> None:
    assert waits(only_task(f"{LEAF}on_partition: continue\nqueue_timeout: 7d\n")) == (
        OnPartition.CONTINUE,
        limits.TASK_TIMEOUT_MAX_S,
    )
    assert waits(only_task(LEAF)) == (OnPartition.KILL, None)


def test_both_may_be_templates() -> None:
    text = f"{LEAF}on_partition: '{{{{ .p }}}}'\nqueue_timeout: '{{{{ .m }}}}m'\nwith: {{p: continue, m: 2}}\n"
    assert waits(only_task(text)) == (OnPartition.CONTINUE, 120)


@pytest.mark.parametrize("names", [("on_partition", "queue_timeout"), ("onPartition", "queueTimeout")])
def test_a_task_of_a_pipeline_is_nearer_than_the_pipeline(names: tuple[str, str]) -> None:
    partition, timeout = names
    (task,) = plan_of(pipeline({partition: "kill"}, **{partition: "continue", timeout: "10m"})).tasks
    assert waits(task) == (OnPartition.KILL, 600)
    (task,) = plan_of(pipeline({timeout: 5}, **{partition: "continue", timeout: "10m"})).tasks
    assert waits(task) == (OnPartition.CONTINUE, 5)


def test_two_spellings_of_one_key_are_an_error() -> None:
    (finding,) = refused(pipeline(on_partition="kill", onPartition="kill"))
    assert (finding["code"], finding["path"]) == ("repeated-key", "onPartition")


# --- keys in the wrong place -----------------------------------------------------------------------------------

VALUES = {"priority": 3, "queue": "q", "concurrency": 1, "on_partition": "continue", "queue_timeout": "1m"}
OF_THE_RUN = {"priority", "queue", "concurrency"}


@pytest.mark.parametrize("key", VALUES)
@pytest.mark.parametrize("what", ["a step", "a group", "a task"])
def test_a_misplaced_key_is_told_where_it_belongs(key: str, what: str) -> None:
    value = json.dumps(VALUES[key])
    is_fine = what != "a step" and key not in OF_THE_RUN
    group = f"name: a\nuses: {{main: {{{key}: {value}, steps: [{{image: i, run: x}}]}}}}\n"
    step = f"name: a\nuses: {{main: [{{image: i, run: x, {key}: {value}}}]}}\n"
    text = {"a group": group, "a step": step, "a task": pipeline({key: VALUES[key]})}[what]
    findings = lint(text, actions=None).findings
    assert [each.code for each in findings] == ([] if is_fine else ["misplaced-key"])
    for each in findings:
        assert each.severity == ("warning" if key in ("priority", "queue") else "error")
        assert each.message == f"'{key}' has no effect in {what}: it belongs to {ELSEWHERE[key]}"


@pytest.mark.parametrize("key", ["on_partition", "onPartition", "queueTimeout", "concurrency"])
def test_a_step_of_a_pipeline_cannot_say_them_either(key: str) -> None:
    (finding,) = refused(pipeline(step={key: 1}))
    assert (finding["code"], finding["path"]) == ("misplaced-key", f"pipelineTasks[0].steps[0].{key}")


def test_beside_a_dep_they_are_misplaced_too() -> None:
    (finding,) = refused("name: a\nuses: {main: [{dep: Act, on_partition: continue}]}\n", {"Act": LEAF})
    assert (finding["code"], finding["path"]) == ("misplaced-key", "uses.main[0].on_partition")


# --- retry.memory ----------------------------------------------------------------------------------------------

MEMORY = "resources: {memory: 1g}\n"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2", MemoryGrowth(factor=2)),
        ("1.5", MemoryGrowth(factor=1.5)),
        ("10", MemoryGrowth(factor=10)),
        ("{factor: 3}", MemoryGrowth(factor=3)),
        ("{factor: 2, max: 8Gi}", MemoryGrowth(factor=2, most=8 * 2**30)),
        ("{max: 8Gi}", MemoryGrowth(factor=2, most=8 * 2**30)),
        ("{}", MemoryGrowth(factor=2)),
        ("", None),
    ],
)
def test_memory_of_a_retry_is(value: str, expected: MemoryGrowth | None) -> None:
    result = planned(f"{LEAF}{MEMORY}retry: {{limit: 3, memory: {value}}}\n")
    assert result.plan.tasks[0].retry == Retry(
        limits={**Retry().limits, FailureClass.FAILURE: 3, FailureClass.OOM: 3}, backoff=Backoff(), memory=expected
    )
    assert result.findings == ()


def test_memory_of_a_retry_works_in_pipelines() -> None:
    result = planned(pipeline({"retry": {"memory": 2}}, {"resources": {"memory": "1g"}}))
    assert (result.plan.tasks[0].retry.memory, result.findings) == (MemoryGrowth(factor=2), ())


def test_the_nearest_retry_wins_with_its_memory() -> None:
    text = (
        "name: a\nresources: {memory: 1g}\nretry: {memory: 2}\nuses:\n"
        "  near: {retry: 5, steps: [{image: i, run: x}]}\n  far: [{image: i, run: x}]\n"
    )
    near, far = plan_of(text).tasks
    assert (near.retry.memory, far.retry.memory) == (None, MemoryGrowth(factor=2))


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (
            "retry: {memory: 2}\n",
            "retry.memory has nothing to raise: no container of 'main' has a memory limit",
        ),
        (
            MEMORY + "retry: {memory: {factor: 2, max: 1g}}\n",
            "retry.memory.max is not above any memory limit of 'main'",
        ),
        (
            MEMORY + "retry: {memory: 2, on: [lost]}\n",
            "retry.memory has no effect: 'on' leaves out oom, so no attempt follows one that ran out of memory",
        ),
        (
            MEMORY + "retry: {limit: 0, memory: 2}\n",
            "retry.memory has no effect: 'limit' is 0, so no attempt follows one that ran out of memory",
        ),
    ],
)
def test_memory_that_cannot_grow_is_a_warning(rest: str, message: str) -> None:
    (finding,) = planned(LEAF + rest).findings
    assert (finding.severity, finding.code, finding.path) == ("warning", "no-growth", "retry.memory")
    assert finding.message == message
    assert finding.hint
    assert lint(LEAF + rest, actions=None).findings == (finding,)


def test_one_container_with_a_limit_is_enough() -> None:
    text = (
        "name: a\nretry: {memory: 2}\n"
        "uses: {main: [{image: i, run: x}, {image: j, run: y, resources: {memory: 64m}}]}\n"
    )
    assert codes(text) == []
    assert codes(pipeline({"retry": {"memory": 2}})) == [("warning", "no-growth", "pipelineTasks[0].retry.memory")]


def test_lint_does_not_guess_at_a_limit_that_is_not_known_yet() -> None:
    for text in (
        f"{LEAF}retry: {{memory: 2}}\nresources: {{memory: '{{{{ .m }}}}'}}\n",
        "name: a\nretry: {memory: 2}\nuses: {main: [{dep: Elsewhere}, {image: i, run: x}]}\n",
        "name: a\nretry: {memory: 2}\nrun: x\n",
    ):
        assert "no-growth" not in [each.code for each in lint(text, actions=library({})).findings]


def test_a_step_is_tried_again_in_the_container_that_is_there() -> None:
    step = "{image: i, run: x, resources: {memory: 1g}, retry: {limit: 2, memory: 2}}"
    assert codes(f"name: a\nuses: {{main: [{step}]}}\n") == [
        ("warning", "misplaced-key", "uses.main[0].retry.memory"),
    ]
    assert codes(pipeline(step={"retry": {"memory": 2}})) == [
        ("warning", "misplaced-key", "pipelineTasks[0].steps[0].retry.memory")
    ]


# --- agent -----------------------------------------------------------------------------------------------------

GPU = Constraint(key="gpu", operator="in", values=("true",))
ZONE = Constraint(key="zone", operator="in", values=("a", "b"))
NO_SPOT = Constraint(key="spot", operator="absent")
SSD = Constraint(key="ssd", operator="present")
NO_HDD = Constraint(key="disk", operator="not_in", values=("hdd",))


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        ("gpu=true", (GPU,)),
        ("{gpu: true}", (GPU,)),
        ("zone in [a, b]", (ZONE,)),
        ("{zone: [a, b]}", (ZONE,)),
        ("'!spot'", (NO_SPOT,)),
        ("ssd", (SSD,)),
        ("{ssd: }", (SSD,)),
        ("disk!=hdd", (NO_HDD,)),
        ("[gpu=true, 'zone in [a, b]', '!spot', ssd, disk!=hdd]", (GPU, ZONE, NO_SPOT, SSD, NO_HDD)),
        ("gpu=true, zone in [a, b], !spot, ssd, disk!=hdd", (GPU, ZONE, NO_SPOT, SSD, NO_HDD)),
        ("[{gpu: true, ssd: }, 'disk!=hdd']", (GPU, SSD, NO_HDD)),
        ("{rack: 7}", (Constraint(key="rack", operator="in", values=("7",)),)),
    ],
)
def test_agent_says_what_labels_are_demanded(agent: str, expected: tuple[Constraint, ...]) -> None:
    assert only_task(f"{LEAF}agent: {agent}\n").constraints == expected
    assert only_task(f"name: a\nuses: {{main: [{{image: i, run: x}}]}}\nagent: {agent}\n").constraints == expected


@pytest.mark.parametrize(
    "agent", ["gpu=true", {"gpu": True}, ["gpu=true"], {"gpu": "true"}, [{"gpu": True}], {"gpu": [True]}]
)
def test_agent_takes_the_same_in_json(agent: object) -> None:
    for text in (pipeline({"agent": agent}), pipeline(agent=agent), pipeline(step={"agent": agent})):
        assert only_task(text).constraints == (GPU,)


# --- all of them in a pipeline ---------------------------------------------------------------------------------

GRAPH: dict[str, object] = {
    "name": "graph",
    "priority": 5,
    "queue": "gpu",
    "concurrency": {"group": "graphs", "limit": 2},
    "onPartition": "continue",
    "queueTimeout": "1h",
    "agent": "zone in [a, b]",
    "pipelineTasks": [
        {"name": "one", "steps": [{"image": "i"}], "resources": {"cpus": 1}},
        {
            "name": "two",
            "dependencies": ["one"],
            "steps": [{"image": "i"}],
            "agent": {"gpu": True},
            "resources": {"gpus": 1},
            "onPartition": "kill",
            "queueTimeout": 30,
        },
    ],
}


def test_tasks_with_dependencies_have_them_from_themselves_or_from_the_pipeline() -> None:
    plan: Plan = plan_of(json.dumps(GRAPH))
    assert (plan.priority, plan.queue, plan.concurrency) == (5, "gpu", Concurrency(group="graphs", limit=2))
    one, two = plan.tasks
    assert (waits(one), one.constraints, one.resources.cpus_milli) == ((OnPartition.CONTINUE, 3600), (ZONE,), 1000)
    assert (waits(two), two.constraints, two.resources.gpus) == ((OnPartition.KILL, 30), (GPU,), 1)
    assert (two.needs, plan.task_of("one").needs) == (("one",), ())


def test_the_readme_names_them() -> None:
    rows = re.findall(r"^\| (`[^|]*?) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert documented >= {*ELSEWHERE, "agent", "retry", "resources"}
