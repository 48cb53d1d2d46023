"""The seed documents run as written: P1, P4, P7, P8, P13, P18 and J1 at the level of the plan."""

import pytest

from pistage.core.definition import lint
from pistage.core.plan import Attachment, Block, Network, Parameter, Step, Volume, When
from tests.core.definition.documents import SEEDS, SLEEP, plan_of, planned, runs, seed, seed_actions

PISTAGES = "git clone git@github.com:projecteru2/pistages.git"


@pytest.mark.parametrize("name", sorted(file.stem for file in SEEDS.iterdir()))
def test_every_block_of_the_seed_lints_without_errors(name: str) -> None:
    assert lint(seed(name), actions=None).is_ok


@pytest.mark.parametrize("name", ["clone-repo-fixed", "clone-pistages"])
def test_p1_an_action_is_executed_as_one_group_main_with_one_step(name: str) -> None:
    plan = plan_of(seed(name))
    (task,) = plan.tasks
    assert (plan.dialect, task.name, runs(task)) == ("pistages", "main", [("alpine/git", "c1", PISTAGES)])
    assert plan.pins == ()


def test_p4_build_pistages_runs_the_action_in_the_image_beside_dep() -> None:
    plan = plan_of(seed("build-with-image"), seed_actions())
    (task,) = plan.tasks
    assert runs(task) == [("bitnami/git", "c1", PISTAGES)]
    assert [pin.name for pin in plan.pins] == ["Clone Pistages"]


def test_p7_build_pistages_clones_the_repository_it_names() -> None:
    (task,) = plan_of(seed("build-with-repo"), seed_actions()).tasks
    assert runs(task) == [("bitnami/git", "c1", "git clone git@github.com:anrs/aa.git")]
    (step,) = task.steps()
    origin = "with beside dep Clone Repo"
    assert step.parameters == (Parameter(name="repo", value="git@github.com:anrs/aa.git", origin=origin),)


def test_p8_with_with_omitted_the_default_is_run() -> None:
    (task,) = plan_of(seed("clone-repo-or-pistages")).tasks
    assert runs(task) == [("alpine/git", "c1", PISTAGES)]
    (task,) = plan_of(seed("build-with-default"), seed_actions()).tasks
    assert runs(task) == [("bitnami/git", "c1", PISTAGES)]


def test_p10_with_the_image_omitted_the_actions_own_is_used() -> None:
    (task,) = plan_of(seed("build-inherits-image"), seed_actions()).tasks
    assert runs(task) == [("alpine/git", "c1", PISTAGES)]


def test_p13_build_and_lint_makes_two_containers_with_two_commands_each_both_groups_at_once() -> None:
    plan = plan_of(seed("build-and-lint"), seed_actions())
    assert [task.name for task in plan.tasks] == ["make", "lint"]
    assert [task.needs for task in plan.tasks] == [(), ()]
    for task in plan.tasks:
        assert runs(task) == [("alpine/git", "c1", PISTAGES), ("alpine/git", "c1", f"make {_target(task.name)}")]
        assert len(task.contexts) == 1
        assert task.is_shared(task.contexts[0])
    assert sum(len(task.contexts) for task in plan.tasks) == 2


def _target(group: str) -> str:
    return "build" if group == "make" else group


PING = """\
name: ping
uses:
  first:
    - dep: Sleep
      with: {duration: 8}
    - run: ping -c 3 127.0.0.1
  second:
    - dep: Sleep
      with:
        duration: 8
    - run: ping -c 3 127.0.0.1
"""


def test_p18_ping_starts_while_sleep_still_runs_in_the_same_container() -> None:
    plan = plan_of(PING, seed_actions())
    assert [task.name for task in plan.tasks] == ["first", "second"]
    for task in plan.tasks:
        assert runs(task) == [("alpine", "c1", "sleep 8"), ("alpine", "c1", "ping -c 3 127.0.0.1")]
        sleep, ping = task.body.children
        assert isinstance(sleep, Step) and isinstance(ping, Step)
        assert (sleep.is_async, ping.is_async) == (True, False)
        assert task.body.kind == "sequence"


def test_p18_sleep_by_itself_sleeps_sixteen_seconds() -> None:
    (task,) = plan_of(SLEEP).tasks
    assert runs(task) == [("alpine", "c1", "sleep 16")]


def test_p18_the_flow_mapping_and_the_numbers_stay_as_written() -> None:
    (task,) = plan_of(SLEEP.replace("16", "1.50")).tasks
    assert runs(task) == [("alpine", "c1", "sleep 1.50")]


def test_j1_the_pipeline_document_runs_as_written() -> None:
    result = planned(seed("test"))
    plan = result.plan
    assert result.findings == ()
    assert (plan.name, plan.dialect, plan.start_node) == ("test", "pipeline", None)
    assert plan.networks == (Network(name="pipeline_default", driver="bridge"),)
    assert plan.volumes == (Volume(name="pipeline_default", driver="local"),)
    (task,) = plan.tasks
    (step,) = task.steps()
    (context,) = task.contexts
    assert (task.name, task.needs, task.gang) == ("docker image pipeline", (), None)
    assert (step.name, step.script, step.entrypoint, step.command) == ("defaultJob", None, None, None)
    assert (step.workdir, dict(step.env), step.when, step.skip_reason) == ("/workspace", {}, When.SUCCESS, None)
    assert (context.image, context.auth) == ("java-pipeline:1.0.1", None)
    assert context.networks == (Attachment(network="pipeline_default", aliases=("default",)),)


def test_the_same_document_makes_the_same_plan() -> None:
    assert plan_of(PING, seed_actions()) == plan_of(PING, seed_actions())


def test_a_lone_step_of_an_action_is_not_wrapped() -> None:
    (task,) = plan_of(seed("build-with-image"), seed_actions()).tasks
    assert not any(isinstance(child, Block) for child in task.body.children)
