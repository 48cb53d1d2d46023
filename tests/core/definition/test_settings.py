"""The keys that definitions, groups and steps share: what they take, and that the nearest wins."""

import pytest

from pistage.core.definition.units import bytes_of, constraint_of, constraints_in, milli_of, seconds_of
from pistage.core.plan import (
    Attachment,
    Backoff,
    Constraint,
    FailureClass,
    HealthCheck,
    Mount,
    Network,
    Resources,
    Retry,
    Service,
    Task,
    Volume,
)
from tests.core.definition.documents import only_step, only_task, plan_of, planned, refused


def leaf(extra: str) -> Task:
    return only_task(f"name: a\nimage: alpine\nrun: x\n{extra}\n")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("1d", 86400),
        ("45", 45),
        ("1.5", 1.5),
        ("1.5h", 5400),
        ("", None),
        ("soon", None),
        ("10", 10),
        ("10 m", None),
        ("-1s", None),
        ("1h 30m", None),
        ("m", None),
        ("1e3", None),
    ],
)
def test_a_duration_is(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512Mi", 2**29),
        ("2g", 2**31),
        ("2GB", 2**31),
        ("1.5Gi", 3 * 2**29),
        ("8388608", 2**23),
        ("1Ti", 2**40),
        ("64 m", 2**26),
        ("2", None),
        ("1k", None),
        ("many", None),
        ("-5m", None),
        ("5x", None),
        ("8i", None),
        ("9" * 20, None),
    ],
)
def test_memory_is(text: str, size: int | None) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize(
    ("text", "milli"),
    [("0.5", 500), ("2", 2000), ("500m", 500), ("0", None), ("0m", None), ("a", None), ("5000", None)],
)
def test_cpus_are(text: str, milli: int | None) -> None:
    assert milli_of(text) == milli


@pytest.mark.parametrize(
    ("text", "key", "operator", "values"),
    [
        ("gpu=true", "gpu", "in", ("true",)),
        ("gpu == true", "gpu", "in", ("true",)),
        ("disk!=hdd", "disk", "not_in", ("hdd",)),
        ("zone in [a, b]", "zone", "in", ("a", "b")),
        ("zone in (a,b)", "zone", "in", ("a", "b")),
        ("zone not in [a]", "zone", "not_in", ("a",)),
        ("!spot", "spot", "absent", ()),
        ("ssd", "ssd", "present", ()),
        ("example.com/rack=7", "example.com/rack", "in", ("7",)),
    ],
)
def test_a_demand_on_labels_is(text: str, key: str, operator: str, values: tuple[str, ...]) -> None:
    assert constraint_of(text) == Constraint(key=key, operator=operator, values=values)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "=", "a=b=c d", "a in b", "zone in []", "! ", "a b", "é=1", "a in [b", "-a"])
def test_what_is_no_demand_is_refused(text: str) -> None:
    assert constraint_of(text) is None


def test_demands_are_split_at_commas_outside_brackets() -> None:
    assert constraints_in("gpu=true, zone in [a, b], !spot") == ["gpu=true", " zone in [a, b]", " !spot"]


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        ("gpu=true, !spot", (("gpu", "in", ("true",)), ("spot", "absent", ()))),
        ("[gpu=true, '!spot']", (("gpu", "in", ("true",)), ("spot", "absent", ()))),
        (
            "{gpu: true, zone: [a, b], ssd: }",
            (("gpu", "in", ("true",)), ("zone", "in", ("a", "b")), ("ssd", "present", ())),
        ),
        ("zone in [a, b]", (("zone", "in", ("a", "b")),)),
    ],
)
def test_agent_takes_a_text_a_list_or_a_mapping(
    agent: str, expected: tuple[tuple[str, str, tuple[str, ...]], ...]
) -> None:
    found = leaf(f"agent: {agent}").constraints
    assert tuple((each.key, each.operator, each.values) for each in found) == expected


NEAREST = """\
name: a
env: {A: definition, B: definition, C: definition}
workdir: /definition
user: definition
timeout: 100
retry: 5
resources: {cpus: 1, memory: 1g}
agent: zone=definition
uses:
  near:
    env: {B: group, C: group}
    timeout: 50
    resources: {cpus: 2}
    agent: zone=group
    steps:
      - image: i
        run: x
        env: {C: step}
        workdir: /step
        user: 1000
        timeout: 10
        retry: 2
        agent: ssd
  far:
    - image: i
      run: y
"""


def test_nearest_wins() -> None:
    near, far = plan_of(NEAREST).tasks
    (step,) = near.steps()
    assert dict(step.env) == {"A": "definition", "B": "group", "C": "step"}
    assert (step.workdir, step.user, step.timeout_s, step.retries) == ("/step", "1000", 10, 2)
    assert near.timeout_s == 50
    assert near.contexts[0].resources == Resources(cpus_milli=2000, memory_bytes=2**30)
    assert [(each.key, each.values) for each in near.constraints] == [("zone", ("group",)), ("ssd", ())]
    (step,) = far.steps()
    assert dict(step.env) == {"A": "definition", "B": "definition", "C": "definition"}
    assert (step.workdir, step.user, step.timeout_s, step.retries) == ("/definition", "definition", None, 0)
    assert (far.timeout_s, far.retry.limits[FailureClass.FAILURE]) == (100, 5)


ACTION = """\
name: Act
env: {A: action, B: action, C: action, D: action}
workdir: /action
timeout: 20
agent: gpu=true
uses:
  main:
    env: {C: action group}
    steps:
      - {image: i, run: x, env: {D: action step}}
"""


def test_beside_dep_wins_over_the_action_and_the_action_over_its_callers_surroundings() -> None:
    text = (
        "name: a\nenv: {A: caller, B: caller, Z: caller}\nworkdir: /caller\nuser: caller\nagent: zone=a\nuses:\n"
        "  main:\n    - {dep: Act, env: {A: beside, D: beside}}\n"
    )
    task = only_task(text, {"Act": ACTION})
    (step,) = task.steps()
    assert dict(step.env) == {"A": "beside", "B": "action", "C": "action group", "D": "beside", "Z": "caller"}
    assert (step.workdir, step.user, step.timeout_s) == ("/action", "caller", 20)
    assert [each.key for each in task.constraints] == ["zone", "gpu"]


def test_retry_as_a_number_is_about_commands_and_leaves_infrastructure_alone() -> None:
    retry = leaf("retry: 0").retry
    assert retry.limits == {**Retry().limits, FailureClass.FAILURE: 0, FailureClass.OOM: 0}
    assert leaf("").retry == Retry()


def test_retry_as_a_mapping_says_more() -> None:
    retry = leaf("retry: {limit: 4, backoff: {initial: 2s, factor: 3, max: 1m, jitter: 0}, on: [lost, pull]}").retry
    assert retry.limits == {FailureClass.LOST: 4, FailureClass.PULL: 4}
    assert retry.backoff == Backoff(initial_s=2, factor=3, max_s=60, jitter=0)


def test_volumes_are_mounted_declared_or_both() -> None:
    plan = plan_of(
        "name: a\nvolumes:\n  - name: kept\n    external: true\n  - {name: fast, driver: tmpfs}\n  - 'all:/all'\n"
        "uses:\n  main:\n"
        "    - {image: i, run: x, volumes: ['kept:/kept:ro', '/srv/data/:/data/', {name: fast, target: /fast}]}\n"
    )
    assert plan.volumes == (
        Volume(name="kept", is_external=True),
        Volume(name="fast", driver="tmpfs"),
        Volume(name="all"),
    )
    assert plan.tasks[0].contexts[0].mounts == (
        Mount(kind="volume", source="all", target="/all"),
        Mount(kind="volume", source="kept", target="/kept", is_read_only=True),
        Mount(kind="bind", source="/srv/data", target="/data"),
        Mount(kind="volume", source="fast", target="/fast"),
    )


def test_declarations_may_be_a_mapping() -> None:
    plan = plan_of(
        "name: a\nimage: i\nrun: x\nvolumes: {cache: }\nnetworks: {net: {driver: overlay, external: true}}\n"
    )
    assert plan.volumes == (Volume(name="cache"),)
    assert plan.networks == (Network(name="net", driver="overlay", is_external=True),)
    assert plan.tasks[0].contexts[0].mounts == ()


def test_networks_are_joined_with_aliases_and_made_where_nobody_declared_them() -> None:
    plan = plan_of(
        "name: a\nuses:\n  main:\n    - {image: i, run: x, networks: [one, {name: two, aliases: [db, cache]}]}\n"
    )
    assert plan.networks == (Network(name="one"), Network(name="two"))
    assert plan.tasks[0].contexts[0].networks == (
        Attachment(network="one"),
        Attachment(network="two", aliases=("db", "cache")),
    )


def test_services_are_the_tasks() -> None:
    task = leaf(
        "services:\n  db:\n    image: postgres\n    env: {P: 1}\n    command: postgres -c 'a b'\n"
        "    health: {command: pg_isready, interval: 500ms, retries: 5}\n"
        "  cache: {image: redis, health: redis-cli ping}\n"
    )
    assert task.services == (
        Service(
            name="db",
            image="postgres",
            env={"P": "1"},
            command=("postgres", "-c", "a b"),
            health=HealthCheck(command="pg_isready", interval_s=0.5, retries=5),
        ),
        Service(name="cache", image="redis", health=HealthCheck(command="redis-cli ping")),
    )


def test_templates_are_rendered_in_every_setting() -> None:
    task = leaf(
        "env: {A: '{{ .x }}'}\nworkdir: /{{ .x }}\ntimeout: '{{ .n }}m'\nresources: {cpus: '{{ .n }}'}\n"
        "agent: zone={{ .x }}\nvolumes: ['{{ .x }}:/v']\nwith: {x: y, n: 2}\n"
    )
    (step,) = task.steps()
    assert (dict(step.env), step.workdir, task.timeout_s) == ({"A": "y"}, "/y", 120)
    assert (task.resources.cpus_milli, task.constraints[0].values, task.contexts[0].mounts[0].source) == (
        2000,
        ("y",),
        "y",
    )


def test_values_of_the_environment_are_as_written() -> None:
    step = only_step("name: a\nimage: i\nrun: x\nenv: {A: 1.50, B: true, C: , D: 12:30, E: ''}\n")
    assert dict(step.env) == {"A": "1.50", "B": "true", "D": "12:30", "E": ""}


@pytest.mark.parametrize("name", ["PISTAGE_RUN_ID", "PISTAGE_", "pistage_x", "Pistage_Token"])
def test_s13_a_document_cannot_set_pistage_variables(name: str) -> None:
    for text in (
        f"name: a\nimage: i\nrun: x\nenv: {{{name}: 1}}\n",
        f"name: a\nuses: {{main: {{env: {{{name}: 1}}, steps: [{{image: i, run: x}}]}}}}\n",
        f"name: a\nuses: {{main: [{{image: i, run: x, env: {{{name}: 1}}}}]}}\n",
        f"name: a\nimage: i\nrun: x\nservices: {{db: {{image: i, env: {{{name}: 1}}}}}}\n",
    ):
        assert [finding["code"] for finding in refused(text)] == ["reserved-variable"]


def test_priority_and_queue_are_the_plans() -> None:
    result = planned("name: a\npriority: 7\nqueue: fast\nuses: {main: {priority: 3, steps: [{image: i, run: x}]}}\n")
    assert (result.plan.priority, result.plan.queue) == (7, "fast")
    assert [finding.code for finding in result.findings] == ["misplaced-key"]


def test_unknown_keys_are_warnings_with_the_nearest_known_one() -> None:
    result = planned("name: a\niamge: x\nimage: i\nrun: x\nfoo: 1\nx-mine: 1\n")
    assert [(finding.code, finding.line, finding.column, finding.path) for finding in result.findings] == [
        ("unknown-key", 2, 1, "iamge"),
        ("unknown-key", 5, 1, "foo"),
    ]
    assert result.findings[0].hint == "did you mean 'image'?"
    assert result.findings[1].hint is not None and result.findings[1].hint.startswith(
        "a definition can have after, agent, args, async"
    )


@pytest.mark.parametrize(
    "key",
    [
        "outputs",
        "artifacts",
        "matrix",
        "secrets",
        "cache",
        "triggers",
    ],
)
def test_keys_of_later_features_are_refused_not_ignored(key: str) -> None:
    (finding,) = refused(f"name: a\nimage: i\nrun: x\n{key}: {{a: b}}\n")
    assert (finding["code"], finding["message"]) == ("not-yet", f"'{key}' is not supported yet")
