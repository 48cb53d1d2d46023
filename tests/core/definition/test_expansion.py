"""P2 to P5, P10 to P16: deps, images, containers, and what a step carries."""

import pytest

from pistage.core.plan import Block, When
from tests.core.definition.documents import only_step, only_task, plan_of, planned, refused, runs

TWO_STEPS = "name: Two Steps\nuses:\n  main:\n    - {image: alpine, run: a}\n    - {image: debian, run: b}\n"
MAIN_AND_SIDE = "name: Sides\nuses:\n  side: [{image: side, run: s}]\n  main: [{image: main, run: m}]\n"
TWO_GROUPS = "name: Two Groups\nuses:\n  one: [{image: one, run: a}]\n  two: [{image: two, run: b}, {run: c}]\n"
BARE = "name: Bare\nrun: bare\n"
ACTIONS = {
    "Two Steps": TWO_STEPS,
    "Sides": MAIN_AND_SIDE,
    "Two Groups": TWO_GROUPS,
    "Bare": BARE,
    "Nested": "name: Nested\nuses:\n  main:\n    - dep: Two Steps\n    - {image: last, run: z}\n",
    "Bare Pair": "name: Bare Pair\nuses:\n  one: [{run: a}]\n  two: [{run: b}]\n",
}


def group(*steps: str) -> str:
    return "name: a\nuses:\n  main:\n" + "".join(f"    - {step}\n" for step in steps)


def test_p2_groups_are_tasks_and_steps_are_in_order() -> None:
    plan = plan_of("name: a\nuses:\n  b: [{image: alpine, run: x}, {run: y}]\n  a: [{image: alpine, run: z}]\n")
    assert [(task.name, [step.script for step in task.steps()]) for task in plan.tasks] == [
        ("b", ["x", "y"]),
        ("a", ["z"]),
    ]
    assert [step.id for step in plan.tasks[0].steps()] == ["1", "2"]


def test_p3_actions_are_expanded_recursively_and_pinned() -> None:
    plan = plan_of(group("dep: Nested"), ACTIONS)
    assert runs(plan.tasks[0]) == [("alpine", "c1", "a"), ("debian", "c2", "b"), ("last", "c3", "z")]
    assert [pin.name for pin in plan.pins] == ["Nested", "Two Steps"]
    assert all(len(pin.sha256) == 64 and pin.version == 1 for pin in plan.pins)


def test_p3_dep_wins_over_run_with_a_warning() -> None:
    result = planned(group("{dep: Two Steps, run: never}"), ACTIONS)
    assert [step.script for step in result.plan.tasks[0].steps()] == ["a", "b"]
    (finding,) = result.findings
    assert (finding.code, finding.path) == ("dep-wins", "uses.main[0].run")


def test_p3_sixteen_levels_are_fine() -> None:
    levels = {f"L{n}": f"name: L{n}\nuses: {{main: [{{dep: L{n + 1}}}]}}\n" for n in range(1, 16)}
    levels["L16"] = "name: L16\nimage: alpine\nrun: deep\n"
    assert only_step(group("dep: L1"), levels).script == "deep"


def test_p4_image_beside_dep_replaces_the_first_step_of_each_group_only() -> None:
    (task,) = plan_of(group("{dep: Two Steps, image: mine}"), ACTIONS).tasks
    assert runs(task) == [("mine", "c1", "a"), ("debian", "c2", "b")]
    (task,) = plan_of(group("{dep: Two Groups, image: mine}"), ACTIONS).tasks
    assert runs(task) == [("mine", "c1", "a"), ("mine", "c2", "b"), ("mine", "c2", "c")]


def test_p4_recursively_where_the_first_step_is_a_dep() -> None:
    (task,) = plan_of(group("{dep: Nested, image: mine}"), ACTIONS).tasks
    assert runs(task) == [("mine", "c1", "a"), ("debian", "c2", "b"), ("last", "c3", "z")]


def test_p4_the_outermost_image_wins() -> None:
    actions = ACTIONS | {"Own": "name: Own\nuses:\n  main:\n    - {dep: Two Steps, image: inner}\n"}
    assert runs(only_task(group("{dep: Own, image: outer}"), actions))[0][0] == "outer"
    assert runs(only_task(group("dep: Own"), actions))[0][0] == "inner"


def test_p10_a_step_with_an_image_starts_a_container_and_one_without_goes_on() -> None:
    task = only_task(group("{image: a, run: '1'}", "run: '2'", "{image: a, run: '3'}", "run: '4'"))
    assert runs(task) == [("a", "c1", "1"), ("a", "c1", "2"), ("a", "c2", "3"), ("a", "c2", "4")]


def test_the_image_of_a_group_or_definition_is_for_first_steps_that_have_none() -> None:
    text = "name: a\nimage: base\nuses:\n  one: [{run: x}, {run: y}]\n  two: {image: mine, steps: [{run: z}]}\n"
    text += "  three: [{dep: Two Steps}]\n  four: [{dep: Bare}]\n"
    plan = plan_of(text, ACTIONS)
    images = {task.name: [image for image, _, _ in runs(task)] for task in plan.tasks}
    assert images == {"one": ["base", "base"], "two": ["mine"], "three": ["alpine", "debian"], "four": ["base"]}


def test_p11_after_a_dep_the_context_is_that_of_the_last_step_of_main() -> None:
    task = only_task(group("dep: Sides", "run: after"), ACTIONS)
    assert runs(task)[-1] == ("main", "c2", "after")
    task = only_task(group("dep: Two Steps", "run: after"), ACTIONS)
    assert runs(task)[-1] == ("debian", "c2", "after")


def test_p11_from_says_which_group() -> None:
    task = only_task(group("dep: Two Groups", "{run: after, from: two}"), ACTIONS)
    assert runs(task)[-1] == ("two", "c2", "after")
    task = only_task(group("dep: Sides", "{run: after, from: side}"), ACTIONS)
    assert runs(task)[-1] == ("side", "c1", "after")
    task = only_task(group("dep: Two Groups", "{dep: Bare, from: one}"), ACTIONS)
    assert runs(task)[-1] == ("one", "c1", "bare")


def test_p12_an_action_without_an_image_inherits_the_callers_context() -> None:
    task = only_task(group("{image: alpine, run: x}", "dep: Bare", "run: y"), ACTIONS)
    assert runs(task) == [("alpine", "c1", "x"), ("alpine", "c1", "bare"), ("alpine", "c1", "y")]
    task = only_task(group("{image: alpine, run: x}", "dep: Bare Pair"), ACTIONS)
    assert runs(task) == [("alpine", "c1", "x"), ("alpine", "c1", "a"), ("alpine", "c1", "b")]
    assert runs(only_task(group("{dep: Bare, image: given}"), ACTIONS)) == [("given", "c1", "bare")]


def test_a_dep_of_several_groups_is_a_parallel_block() -> None:
    task = only_task(group("dep: Two Groups"), ACTIONS)
    (block,) = task.body.children
    assert isinstance(block, Block)
    assert (block.kind, block.name, block.is_async) == ("parallel", "Two Groups", False)
    kinds = [(child.kind, child.name, len(child.children)) for child in block.children if isinstance(child, Block)]
    assert kinds == [("sequence", "one", 1), ("sequence", "two", 2)]


def test_a_dep_of_several_steps_is_a_sequence_of_its_own() -> None:
    (block,) = only_task(group("dep: Two Steps"), ACTIONS).body.children
    assert isinstance(block, Block)
    assert (block.kind, block.name, len(block.children)) == ("sequence", "Two Steps", 2)


def test_groups_of_an_action_that_need_each_other_come_in_layers() -> None:
    action = (
        "name: Layers\nuses:\n  last: {needs: [a, b], steps: [{image: i, run: l}]}\n"
        "  a: [{image: i, run: a}]\n  b: [{image: i, run: b}]\n"
    )
    (block,) = only_task(group("dep: Layers"), {"Layers": action}).body.children
    assert isinstance(block, Block) and block.kind == "sequence"
    layers = [[child.name for child in layer.children] for layer in block.children if isinstance(layer, Block)]
    assert layers == [["a", "b"], ["last"]]


def test_p14_run_is_a_script_and_a_list_is_its_lines() -> None:
    assert only_step("name: a\nimage: alpine\nrun: [cd x, make]\n").script == "cd x\nmake"
    step = only_step("name: a\nimage: alpine\nrun: make\n")
    assert (step.entrypoint, step.command, step.workdir) == (None, None, "/workspace")


def test_p14_command_is_for_images_without_a_shell() -> None:
    step = only_step("name: a\nimage: hello-world\ncommand: '--name \"{{ .x }} b\" c'\nwith: {x: a}\n")
    assert (step.script, step.entrypoint, step.command) == (None, None, ("--name", "a b", "c"))
    step = only_step("name: a\nimage: x\nentrypoint: [/bin/tool]\ncommand: [run, 5, true]\n")
    assert (step.entrypoint, step.command) == (("/bin/tool",), ("run", "5", "true"))


def test_p15_async_on_a_step_on_an_action_and_on_its_use() -> None:
    actions = ACTIONS | {"Async Pair": TWO_STEPS.replace("Two Steps", "Async Pair") + "async: true\n"}
    nodes = only_task(
        group("{image: i, run: x, async: true}", "{run: y}", "dep: Async Pair", "{dep: Two Groups, async: true}"),
        actions,
    ).body.children
    assert [node.is_async for node in nodes] == [True, False, True, True]


def test_p16_on_is_carried_by_the_step() -> None:
    on = "{retry: 2, reentry: 'clean {{ .x }}', failed: [report, '{{ .x }}']}"
    step = only_step(f"name: a\nimage: alpine\nrun: x\non: {on}\nwith: {{x: 1}}\n")
    assert (step.retries, step.reentry, step.failed) == (2, ("clean 1",), ("report", "1"))


def test_p16_on_beside_a_dep_is_for_each_of_its_steps_and_wins() -> None:
    action = "name: Own\nuses:\n  main:\n    - {image: i, run: a, on: {retry: 1, failed: mine}}\n    - run: b\n"
    task = only_task(group("{dep: Own, on: {retry: 3}}"), {"Own": action})
    assert [(step.retries, step.failed) for step in task.steps()] == [(3, ("mine",)), (3, ())]


def test_when_is_a_word_for_the_run() -> None:
    task = only_task(group("{image: i, run: x}", "{run: y, when: failure}", "{dep: Two Steps, when: always}"), ACTIONS)
    assert [node.when for node in task.body.children] == [When.SUCCESS, When.FAILURE, When.ALWAYS]


@pytest.mark.parametrize(
    ("when", "runs_it"),
    [
        ("true", True),
        ("false", False),
        (".go", True),
        ("not .go", False),
        ('"{{ .go }}"', True),
        (".n == 2", False),
        ('"{{ .off }}"', False),
        (".text == 'no'", True),
        (".n == 1", True),
        (".zero", False),
        (".missing is defined", False),
    ],
)
def test_when_is_a_condition_decided_while_planning(when: str, runs_it: bool) -> None:
    text = f"name: a\nuses:\n  main:\n    - image: i\n      run: x\n      when: {when}\n"
    step = only_step(text + "with: {go: true, off: 'false', n: 1, text: 'no', zero: 0}\n")
    assert (step.skip_reason is None) is runs_it
    if not runs_it:
        assert step.skip_reason is not None and step.skip_reason.startswith("its condition is false: ")


def test_a_template_of_when_may_make_a_word() -> None:
    assert only_step(group("{image: i, run: x, when: '{{ .w }}'}") + "with: {w: always}\n").when is When.ALWAYS


def test_what_is_skipped_needs_no_parameters() -> None:
    text = "name: a\nuses:\n  main:\n    - image: i\n      run: echo {{ .token }}\n      when: false\n"
    assert only_step(text).skip_reason == "its condition is false: false"
    text = "name: a\nuses:\n  main: {when: .deploy, steps: [{image: i, run: 'echo {{ .token }}'}]}\n"
    text += "with: {deploy: false}\n"
    task = only_task(text)
    assert task.skip_reason == "its condition is false: .deploy"


def test_a_skipped_dep_skips_all_its_steps_and_keeps_its_contexts() -> None:
    task = only_task(group("{dep: Two Steps, when: false}", "run: after"), ACTIONS)
    assert [step.skip_reason is None for step in task.steps()] == [False, False, True]
    assert runs(task)[-1] == ("debian", "c2", "after")


def test_what_is_skipped_asks_nothing_of_the_agent() -> None:
    task = only_task(
        group(
            "{image: i, run: x}",
            "{image: j, run: y, when: false, agent: gpu, resources: {cpus: 9}, services: {db: {image: k}}}",
        )
    )
    assert (task.constraints, task.services, task.resources.cpus_milli) == ((), (), None)


def test_steps_are_named_by_name_action_or_first_line() -> None:
    task = only_task(
        group(
            "{image: i, run: 'make  all'}",
            "{name: mine, run: x}",
            "dep: Bare",
            "{name: theirs, dep: Bare}",
            "command: [a, b]",
        ),
        ACTIONS,
    )
    assert [step.name for step in task.steps()] == ["make all", "mine", "Bare", "theirs", "a b"]
    assert [step.action for step in task.steps()] == [None, None, "Bare", "Bare", None]


def test_the_registered_text_is_what_runs_even_if_it_has_the_documents_own_name() -> None:
    assert only_step("name: Bare\nuses: {main: [{dep: Bare, image: i}]}\n", ACTIONS).script == "bare"


def test_ten_thousand_steps_are_planned_and_one_more_is_not() -> None:
    actions = {"Ten": "name: Ten\nuses:\n  main:\n" + "    - {image: i, run: x}\n" * 10}
    hundred = {"Hundred": "name: Hundred\nuses:\n  main:\n" + "    - dep: Ten\n" * 10}
    plan = plan_of(group(*["dep: Hundred"] * 20), actions | hundred)
    assert sum(1 for _ in plan.tasks[0].steps()) == 2000
    (finding,) = refused(group(*["dep: Hundred"] * 101), actions | hundred)
    assert (finding["code"], finding["path"]) == ("plan-too-large", "uses.main[100]")


def test_a_plan_of_more_than_four_mebibytes_is_refused() -> None:
    text = group(*["{image: i, run: '{{ .x }}'}"] * 10)
    findings = refused(text, None, {"x": "x" * 400_000})
    assert [finding["code"] for finding in findings] == ["plan-too-large"]


@pytest.mark.slow
def test_a_small_document_that_uses_a_large_one_often_is_refused_at_once() -> None:
    actions = {"Large": "name: Large\nimage: i\nrun: x\nenv: {" + ", ".join(f"A{n}: 1" for n in range(9000)) + "}\n"}
    (finding,) = refused(group(*["dep: Large"] * 6000), actions)
    assert finding["code"] == "plan-too-large"
