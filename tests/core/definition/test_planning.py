"""R5, R6: what lint says without a server, what planning refuses, and the names of documents."""

import pytest

from pistage.core.codec import from_json, to_json
from pistage.core.definition import document_name, lint
from pistage.core.plan import Plan
from pistage.errors import Code, PistageError
from pistage.predefined import example, examples, predefined_actions
from tests.core.definition.documents import library, plan_of, planned, refused, seed, seed_actions


def test_r6_a_document_whose_parameters_are_missing_passes_lint_and_lists_them() -> None:
    result = lint(
        "name: a\nimage: '{{ .image }}'\nrun: echo {{ .b }} {{ .c | default('x') }} {{ .d }}\nwith: {d: 1}\n",
        actions=None,
    )
    assert result.is_ok and result.findings == ()
    assert result.parameters_needed == ("b", "image")
    assert (result.name, result.dialect, result.normalised) == ("a", "pistages", None)


def test_r6_names_that_only_a_branch_needs_are_listed_too() -> None:
    result = lint("name: a\nimage: i\nrun: '{% if .a %}{{ .b }}{% endif %}'\n", actions=None)
    assert result.parameters_needed == ("a", "b")


def test_r6_a_first_step_without_an_image_passes_lint_and_is_listed() -> None:
    result = lint("name: a\nuses:\n  one: [{run: x}]\n  two: [{image: i, run: x}]\n", actions=None)
    assert (result.is_ok, result.images_missing) == (True, ("uses.one[0]",))
    assert lint("name: a\nrun: x\n", actions=None).images_missing == ("",)


def test_r6_a_dep_that_cannot_be_looked_up_is_a_warning_and_planning_refuses_it() -> None:
    text = "name: a\nuses: {main: [{dep: Nowhere}]}\n"
    for actions in (None, library({})):
        result = lint(text, actions=actions)
        assert [(finding.severity, finding.code) for finding in result.findings] == [("warning", "unknown-action")]
        assert result.actions_missing == ("Nowhere",)
    assert [finding["code"] for finding in refused(text)] == ["unknown-action"]


def test_r6_lint_looks_into_actions_where_it_has_them() -> None:
    result = lint("name: a\nuses: {main: [{dep: B}]}\n", actions=library({"B": "name: B\nimage: i\nrun: 5\n"}))
    assert [(finding.action, finding.code) for finding in result.errors] == [("B", "wrong-kind")]


def test_r6_what_depends_on_a_missing_parameter_is_not_judged() -> None:
    text = (
        "name: a\nimage: '{{ .x }} {{ .x }}'\nrun: x\ntimeout: '{{ .x }}'\n"
        "resources: {cpus: '{{ .x }}', memory: '{{ .x }}'}\n"
        "agent: '{{ .x }}'\nworkdir: '{{ .x }}'\nvolumes: ['{{ .x }}']\nnetworks: ['{{ .x }}']\nuser: '{{ .x }}'\n"
        "retry: '{{ .x }}'\nwhen: '{{ .x }}'\non: {retry: '{{ .x }}'}\nservices: {db: {image: '{{ .x }}'}}\n"
    )
    result = lint(text, actions=None)
    assert result.findings == ()
    assert result.parameters_needed == ("x",)


def test_r6_a_parameter_that_only_the_caller_of_an_action_can_give_is_a_warning_in_lint() -> None:
    result = lint("name: a\nuses: {main: [{dep: Clone Repo}]}\n", actions=library(seed_actions()))
    assert [(finding.severity, finding.code, finding.action) for finding in result.findings] == [
        ("warning", "missing-parameter", "Clone Repo")
    ]


def test_r6_a_parameter_that_is_passed_on_but_not_known_yet_is_listed_once() -> None:
    text = "name: a\nuses:\n  main:\n    - dep: Clone Repo\n      with: {repo: '{{ .url }}'}\n"
    result = lint(text, actions=library(seed_actions()))
    assert (result.findings, result.parameters_needed) == ((), ("url",))


def test_the_name_of_a_document_is_what_it_is_registered_under() -> None:
    assert document_name(seed("clone-repo-or-pistages")) == "Clone Repo, Pistages if omitted"
    assert document_name(seed("build-with-repo")) == "Build Pistages"
    with pytest.raises(PistageError) as caught:
        document_name("name: 0\nrun: x\n")
    assert caught.value.code is Code.INVALID
    assert caught.value.details["findings"]


@pytest.mark.parametrize("name", ["a", "Clone Repo, Pistages if omitted", "构建", "a/b", "a" * 200, "été: 1"])
def test_names_may_hold_spaces_commas_and_any_script(name: str) -> None:
    assert document_name(f"name: '{name}'\nimage: i\nrun: x\n") == name


def test_p19_every_predefined_action_lints_clean_and_needs_only_what_must_be_given() -> None:
    needed = {name: lint(text, actions=None) for name, text in predefined_actions().items()}
    assert all(result.is_ok and not result.findings and not result.images_missing for result in needed.values())
    assert {name: result.name for name, result in needed.items()} == {name: name for name in needed}
    assert {"Clone Repository", "Fetch File", "Run Python Script", "Run Node Script", "Send Webhook"} <= needed.keys()
    assert needed["Clone Repository"].parameters_needed == ("repo",)


@pytest.mark.parametrize("name", examples())
def test_every_example_plans(name: str) -> None:
    actions = predefined_actions() | seed_actions()
    result = planned(example(name), actions, {"repo": "git@example.com:a/b.git"} if name == "seed-clone-repo" else {})
    assert all(finding.code in {"deeper-keys", "not-yet"} for finding in result.findings)


def test_the_demo_is_a_small_graph_that_needs_no_image_of_its_own() -> None:
    plan = plan_of(example("demo"))
    assert {task.name: task.needs for task in plan.tasks} == {
        "prepare": (),
        "build": ("prepare",),
        "test": ("prepare",),
        "report": ("build", "test"),
    }
    assert {context.image for task in plan.tasks for context in task.contexts} == {"alpine"}


def test_an_example_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(PistageError) as caught:
        example("nothing")
    assert caught.value.code is Code.NOT_FOUND
    assert caught.value.hint is not None and "demo" in caught.value.hint


@pytest.mark.parametrize("name", examples())
def test_a_plan_survives_the_wire(name: str) -> None:
    actions = predefined_actions() | seed_actions()
    plan = plan_of(example(name), actions, {"repo": "r"})
    assert from_json(Plan, to_json(Plan, plan)) == plan


def test_predefined_scripts_quote_what_they_are_given() -> None:
    nasty = "a b'; rm -rf $HOME \"`id`"
    for name in ("Clone Repository", "Fetch File", "Send Webhook", "Wait for URL", "Unpack Archive"):
        key = {"Clone Repository": "repo", "Unpack Archive": "archive"}.get(name, "url")
        (task,) = plan_of(predefined_actions()[name], None, {key: nasty}).tasks
        script = next(task.steps()).script or ""
        assert nasty not in script.replace("'a b'\"'\"'; rm -rf $HOME \"`id`'", "")
