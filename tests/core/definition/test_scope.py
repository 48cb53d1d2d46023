"""P6: which value a parameter has, and where it says it came from."""

import pytest

from pistage.core.plan import environment_of
from tests.core.definition.documents import only_step, only_task, plan_of, refused

ACTION = "name: Say\nimage: alpine\nrun: echo {{ .x }}\nwith: {x: action}\n"
INNER = """\
name: Say
image: alpine
uses:
  main:
    - run: echo {{ .x }}
      with: {x: step of action}
with: {x: action}
"""


def x_of(text: str, actions: dict[str, str] | None = None, **given: object) -> tuple[str | None, str]:
    step = only_step(text, actions, **given)
    (parameter,) = [each for each in step.parameters if each.name == "x"]
    return step.script, parameter.origin


ROOT = "name: a\nimage: alpine\nrun: echo {{ .x }}\nwith: {x: definition}\n"
GROUP = """\
name: a
uses:
  main:
    - image: alpine
      run: echo {{ .x }}
      with: {x: step}
with: {x: definition}
"""


def test_p6_at_the_root_definition_then_given_then_step() -> None:
    assert x_of(ROOT) == ("echo definition", "with of the definition")
    assert x_of(ROOT, x="given") == ("echo given", "given to the run")
    assert x_of(GROUP) == ("echo step", "with of the step")
    assert x_of(GROUP, x="given") == ("echo step", "with of the step")


def test_p6_in_an_action_its_with_then_its_steps_then_beside_dep() -> None:
    use = "name: a\nuses:\n  main:\n    - dep: Say\n"
    assert x_of(use, {"Say": ACTION}) == ("echo action", "with of action Say")
    assert x_of(use, {"Say": INNER}) == ("echo step of action", "with of a step of action Say")
    beside = use + "      with: {x: beside}\n"
    assert x_of(beside, {"Say": ACTION}) == ("echo beside", "with beside dep Say")
    assert x_of(beside, {"Say": INNER}) == ("echo beside", "with beside dep Say")


def test_p6_with_beside_dep_is_rendered_in_the_callers_scope() -> None:
    text = "name: a\nuses:\n  main:\n    - dep: Say\n      with: {x: '{{ .x }}!'}\nwith: {x: mine}\n"
    assert x_of(text, {"Say": ACTION}) == ("echo mine!", "with beside dep Say")


def test_p6_what_is_given_to_the_run_does_not_leak_into_actions() -> None:
    use = "name: a\nuses:\n  main:\n    - dep: Say\n"
    assert x_of(use, {"Say": ACTION}, x="given") == ("echo action", "with of action Say")


def test_p6_parameters_pass_through_two_actions_only_where_they_are_passed() -> None:
    outer = "name: Outer\nuses:\n  main:\n    - dep: Say\n      with: {x: '{{ .y }}'}\nwith: {y: outer, x: unseen}\n"
    use = "name: a\nuses:\n  main:\n    - dep: Outer\n      with: {y: beside}\n"
    assert x_of(use, {"Say": ACTION, "Outer": outer}) == ("echo beside", "with beside dep Say")


def test_p6_image_inside_with_is_an_ordinary_parameter() -> None:
    action = "name: Say\nimage: alpine\nrun: echo {{ .image }}\n"
    task = only_task("name: a\nuses:\n  main:\n    - dep: Say\n      with: {image: debian}\n", {"Say": action})
    assert (task.contexts[0].image, next(task.steps()).script) == ("alpine", "echo debian")


def test_a_null_in_with_is_a_parameter_without_a_value() -> None:
    text = "name: a\nimage: alpine\nrun: echo {{ .x }}\nwith:\n  x:\n"
    assert [finding["code"] for finding in refused(text)] == ["missing-parameter"]
    assert only_step(text, x="1").script == "echo 1"


def test_a_null_beside_dep_leaves_the_default() -> None:
    text = "name: a\nuses:\n  main:\n    - dep: Say\n      with: {x: null}\n"
    assert x_of(text, {"Say": ACTION}) == ("echo action", "with of action Say")


def test_a_default_may_use_what_was_given_and_the_defaults_before_it() -> None:
    text = "name: a\nimage: alpine\nrun: echo {{ .c }}\nwith: {b: '{{ .a }}-b', c: '{{ .b }}-c'}\n"
    assert only_step(text, a="a").script == "echo a-b-c"
    assert [f["path"] for f in refused("name: a\nimage: alpine\nrun: x\nwith: {b: '{{ .c }}', c: 1}\n")] == ["with.b"]


def test_a_default_that_is_replaced_is_not_rendered() -> None:
    text = "name: a\nimage: alpine\nrun: echo {{ .x }}\nwith: {x: '{{ .missing }}'}\n"
    assert only_step(text, x="given").script == "echo given"


def test_a_lone_template_in_with_keeps_the_type() -> None:
    action = "name: Say\nimage: alpine\nrun: echo {{ .x | join('+') }} {% if .f %}y{% else %}n{% endif %}\n"
    text = "name: a\nuses:\n  main:\n    - dep: Say\n      with: {x: '{{ .x }}', f: '{{ .f }}'}\n"
    text += "with: {x: [1, b], f: false}\n"
    assert only_step(text, {"Say": action}).script == "echo 1+b n"


def test_every_parameter_is_in_the_environment() -> None:
    step = only_step(
        "name: a\nimage: alpine\nrun: x\nenv: {A: 1}\nwith: {the-repo: r, list: [1, a], on: true, n: 1.50}\n"
    )
    assert environment_of(step) == {
        "A": "1",
        "PISTAGE_PARAM_THE_REPO": "r",
        "PISTAGE_PARAM_LIST": '[1, "a"]',
        "PISTAGE_PARAM_ON": "true",
        "PISTAGE_PARAM_N": "1.50",
    }


def test_parameters_that_collide_in_the_environment_are_an_error_also_when_given() -> None:
    (finding,) = refused("name: a\nimage: alpine\nrun: x\nwith: {a-b: 1}\n", None, {"A_B": 2})
    assert finding["code"] == "parameter-collision"


def test_parameters_that_collide_through_a_steps_own_with_are_an_error_too() -> None:
    text = "name: a\nuses:\n  main:\n    - {image: i, run: x, with: {a_b: 2}}\nwith: {a-b: 1}\n"
    assert [(f["code"], f["path"]) for f in refused(text)] == [("parameter-collision", "uses.main[0].with.a_b")]


@pytest.mark.parametrize(
    "value",
    [object(), {1: 2}, 10**70, "a\0b", "\ud800", b"bytes", "x" * (2**20 + 1)],
    ids=lambda value: type(value).__name__,
)
def test_a_given_value_that_no_document_could_hold_is_refused(value: object) -> None:
    (finding,) = refused("name: a\nimage: alpine\nrun: x\n", None, {"x": value})
    assert finding["code"] == "bad-parameter"


def test_a_given_null_is_absent() -> None:
    assert x_of(ROOT, x=None) == ("echo definition", "with of the definition")


def test_a_parameter_given_under_a_name_that_is_nearly_right_is_pointed_out() -> None:
    action = {"Fetch": "name: Fetch\nimage: a\nrun: get {{ .repository }}\n"}
    caller = "name: a\nuses: {main: [{dep: Fetch, with: {repositry: x}}]}"
    (finding,) = refused(caller, action)
    assert str(finding["hint"]).endswith("'repositry' is given: was 'repository' meant?")


def test_missing_parameters_are_all_told_with_those_that_are_known() -> None:
    text = "name: a\nimage: '{{ .image }}'\nrun: echo {{ .b }} {{ .c }}\nwith: {x: 1, y: 2}\n"
    assert [finding["message"] for finding in refused(text)] == [
        "the parameter 'image' has no value; known are 'x', 'y'",
        "the parameters 'b', 'c' have no values; known are 'x', 'y'",
    ]


def test_p5_two_uses_of_one_action_do_not_touch_each_other() -> None:
    text = (
        "name: a\nuses:\n  main:\n    - dep: Say\n      image: one\n      with: {x: 1}\n"
        "    - dep: Say\n      image: two\n      with: {x: 2}\n    - dep: Say\n"
    )
    (task,) = plan_of(text, {"Say": ACTION}).tasks
    assert [(task.context_of(step).image, step.context, step.script) for step in task.steps()] == [
        ("one", "c1", "echo 1"),
        ("two", "c2", "echo 2"),
        ("alpine", "c3", "echo action"),
    ]
