"""Inputs: what a definition declares, what is given, and what comes of the two."""

import json
import random
import re
from itertools import count
from typing import Any

import pytest

from pistage.core import limits
from pistage.core.definition import Inputs, check_inputs, declared_inputs, inputs_schema, lint
from pistage.core.definition.inputs import schema_of
from pistage.core.definition.values import Number
from pistage.errors import Code, PistageError
from tests.core.definition.documents import library, only_step, plan_of, planned, refused

DEPLOY = """
name: Deploy
image: alpine
inputs:
  env: {type: enum, options: [staging, production], required: true, description: where to}
  tag: {pattern: '^v[0-9]+(\\.[0-9]+)*$', default: v1}
  replicas: {type: integer, min: 1, max: 10, default: 2}
  share: {type: number, min: 0, max: 1}
  dry: {type: boolean, default: false}
  hosts: {type: list, items: {pattern: '^[a-z]+$'}, default: [a, b], max_items: 3}
run: "deploy {{ .env }} {{ .tag }} {{ .replicas }} {{ .dry }} {{ .hosts | join(' ') }}"
"""


def declared(**inputs: object) -> Inputs:
    found = declared_inputs(json.dumps({"name": "a", "run": "x", "inputs": inputs}))
    assert found is not None
    return found


def plain(value: object) -> object:
    match value:
        case Number():
            return value.value
        case list():
            return [plain(item) for item in value]
        case _:
            return value


def checked(declaration: dict[str, Any], value: object) -> object:
    """The value that the one input has, or the messages."""
    result = check_inputs(declared(x=declaration), {"x": value})
    return [fault.message for fault in result.faults] or plain(result.values["x"])


@pytest.mark.parametrize(
    ("declaration", "value", "made"),
    [
        ({}, "any", "any"),
        ({}, "", ""),
        ({}, " kept ", " kept "),
        ({}, 3, "3"),
        ({}, Number("1.20"), "1.20"),
        ({}, Number("0x10"), "0x10"),
        ({}, True, "true"),
        ({"min_length": 2, "max_length": 3}, "äöü", "äöü"),
        ({"pattern": "b"}, "abc", "abc"),
        ({"options": ["a", "b"]}, "b", "b"),
        ({"enum": [1.5, True]}, "true", "true"),
        ({"type": "enum", "options": ["1", "2"]}, 2, "2"),
        ({"type": "choice", "options": ["a"]}, "a", "a"),
        ({"type": "integer"}, "3", 3),
        ({"type": "integer"}, " 3 ", 3),
        ({"type": "integer"}, "-3", -3),
        ({"type": "integer"}, "0x10", 16),
        ({"type": "integer"}, 3.0, 3),
        ({"type": "integer"}, "1e3", 1000),
        ({"type": "integer", "options": [1, 2]}, "2", 2),
        ({"type": "integer"}, "9" * 63, int("9" * 63)),
        ({"type": "number"}, "3", 3),
        ({"type": "number"}, "0.5", 0.5),
        ({"type": "number"}, 1e300, 1e300),
        ({"type": "number", "min": 0.1, "max": 0.1}, 0.1, 0.1),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "FALSE", False),
        ({"type": "boolean"}, False, False),
        ({"type": "list"}, "a, b,c", ["a", "b", "c"]),
        ({"type": "list"}, "a\nb\n", ["a", "b"]),
        ({"type": "list"}, "one", ["one"]),
        ({"type": "list"}, "", []),
        ({"type": "list"}, '["a, b", 2]', ["a, b", "2"]),
        ({"type": "list", "items": "integer"}, "1,2", [1, 2]),
        ({"type": "list", "items": "integer"}, "[1, 2.0]", [1, 2]),
        ({"type": "array", "items": {"type": "boolean"}}, ["true", False], [True, False]),
        ({"type": "list", "items": {"options": ["a", "b"]}}, ["b", "b"], ["b", "b"]),
    ],
    ids=count(),
)
def test_a_value_is_read_as_what_the_input_takes(declaration: dict[str, Any], value: object, made: object) -> None:
    found = checked(declaration, value)
    assert (found, type(found)) == (made, type(made))


@pytest.mark.parametrize(
    ("declaration", "value", "messages"),
    [
        ({}, ["a"], ["the input 'x' must be a string, not a list"]),
        ({}, {"a": 1}, ["the input 'x' must be a string, not a mapping"]),
        ({}, object, ["the input 'x' must be a string, not a type"]),
        ({}, "a\0b", ["the input 'x' holds a character that no command can take"]),
        ({}, "\ud800", ["the input 'x' holds a character that no command can take"]),
        ({}, float("nan"), ["the input 'x' must be a string, not the number nan"]),
        ({"min_length": 3}, "ab", ["the input 'x' must have at least 3 characters, not 2"]),
        ({"max_length": 1}, "ab", ["the input 'x' must have at most 1 character, not 2"]),
        ({"min_length": 2, "max_length": 2}, "a", ["the input 'x' must have 2 characters, not 1"]),
        (
            {"min_length": 2, "pattern": "^b"},
            "a",
            [
                "the input 'x' must have at least 2 characters, not 1",
                "the input 'x' must match ^b, which the text 'a' does not",
            ],
        ),
        ({"pattern": "^a$"}, "a\n", ["the input 'x' must match ^a$, which the text 'a' does not"]),
        ({"options": ["a", "b"]}, "c", ["the input 'x' must be one of 'a', 'b', not the text 'c'"]),
        ({"options": ["a"]}, "", ["the input 'x' must be 'a', not an empty text"]),
        ({"type": "integer"}, "three", ["the input 'x' must be an integer, not the text 'three'"]),
        ({"type": "integer"}, "", ["the input 'x' must be an integer, not an empty text"]),
        ({"type": "integer"}, "007", ["the input 'x' must be an integer, not the text '007'"]),
        ({"type": "integer"}, 3.5, ["the input 'x' must be an integer, not the number 3.5"]),
        ({"type": "integer"}, True, ["the input 'x' must be an integer, not the boolean true"]),
        ({"type": "integer"}, "1e300", ["the input 'x' must be an integer, not the text '1e300'"]),
        ({"type": "integer"}, 10**5000, ["the input 'x' must be an integer, not the number of more than 63 digits"]),
        ({"type": "integer", "min": 1, "max": 9}, 10, [
            "the input 'x' must be an integer from 1 to 9, not the number 10",
        ]),
        ({"type": "integer", "min": 1}, 0, ["the input 'x' must be an integer of at least 1, not the number 0"]),
        ({"type": "integer", "options": [1, 2]}, 3, ["the input 'x' must be one of '1', '2', not the number 3"]),
        ({"type": "number", "max": 0.5}, "0.6", ["the input 'x' must be a number of at most 0.5, not the text '0.6'"]),
        ({"type": "number"}, ".inf", ["the input 'x' must be a number, not the text '.inf'"]),
        ({"type": "number"}, float("inf"), ["the input 'x' must be a number, not the number inf"]),
        ({"type": "number"}, "1e999", ["the input 'x' must be a number, not the text '1e999'"]),
        ({"type": "boolean"}, "yes", ["the input 'x' must be true or false, not the text 'yes'"]),
        ({"type": "boolean"}, 1, ["the input 'x' must be true or false, not the number 1"]),
        ({"type": "list"}, 3, ["the input 'x' must be a list, not the number 3"]),
        ({"type": "list"}, "[1", ["the input 'x' must be a list, not the text '[1'"]),
        ({"type": "list"}, "[" * 60_000, [f"the input 'x' must be a list, not the text '{'[' * 39}…'"]),
        ({"type": "list"}, [None, [1]], [
            "item 1 of the input 'x' must be a string, not nothing",
            "item 2 of the input 'x' must be a string, not a list",
        ]),
        ({"type": "list", "items": "integer"}, "1,b,c", [
            "item 2 of the input 'x' must be an integer, not the text 'b'",
            "item 3 of the input 'x' must be an integer, not the text 'c'",
        ]),
        ({"type": "list", "min_items": 1}, [], ["the input 'x' must have at least 1 item, not 0"]),
        ({"type": "list", "max_items": 0}, "a", ["the input 'x' must have at most 0 items, not 1"]),
        ({"type": "list", "min_items": 1, "max_items": 2}, "a,b,c", ["the input 'x' must have 1 to 2 items, not 3"]),
        ({"type": "list"}, ["a"] * 1001, ["the input 'x' must have at most 1000 items, not 1001"]),
        ({"type": "list"}, ["a" * 40_000] * 2, ["the input 'x' has 80008 bytes; at most 65536 bytes are taken"]),
        ({}, "a" * 65_537, ["the input 'x' has 65537 characters; at most 65536 bytes are taken"]),
        ({}, "ä" * 40_000, ["the input 'x' has 80000 bytes; at most 65536 bytes are taken"]),
    ],
    ids=count(),  # some of them are too long to be their own names
)  # fmt: skip
def test_what_is_wrong_says_what_was_expected_and_what_came(
    declaration: dict[str, Any], value: object, messages: list[str]
) -> None:
    assert checked(declaration, value) == messages


def test_every_fault_of_every_input_comes_at_once_with_its_place() -> None:
    given = {"tag": "1", "replicas": "99", "share": True, "dry": "no", "hosts": ["a", "B", 3], "evn": "x"}
    findings = refused(DEPLOY, None, given)
    assert [(finding["path"], finding["line"], finding["code"]) for finding in findings] == [
        ("with.env", 5, "missing-input"),
        ("with.tag", 6, "wrong-input"),
        ("with.replicas", 7, "wrong-input"),
        ("with.share", 8, "wrong-input"),
        ("with.dry", 9, "wrong-input"),
        ("with.hosts[1]", 10, "wrong-input"),
        ("with.hosts[2]", 10, "wrong-input"),
        ("with.evn", 5, "unknown-input"),
    ]
    assert findings[0]["message"] == "the input 'env' is not given"
    assert findings[0]["hint"] == "give it: one of 'staging', 'production'"
    assert findings[-1]["hint"] == "did you mean 'env'?"
    assert all(finding["hint"] for finding in findings)


def test_defaults_are_applied_and_parameters_say_where_they_came_from() -> None:
    step = only_step(DEPLOY, env="staging", replicas="3")
    assert step.script == "deploy staging v1 3 false a b"
    assert {one.name: (one.value, one.origin) for one in step.parameters} == {
        "env": ("staging", "given to the run"),
        "tag": ("v1", "default of the input"),
        "replicas": ("3", "given to the run"),
        "dry": ("false", "default of the input"),
        "hosts": ('["a", "b"]', "default of the input"),
    }


def test_a_text_and_the_value_it_spells_make_the_same_plan() -> None:
    texts = {"env": "staging", "replicas": "3", "dry": "true", "hosts": "x, y"}
    assert plan_of(DEPLOY, None, texts) == plan_of(
        DEPLOY, None, {"env": "staging", "replicas": 3, "dry": True, "hosts": ["x", "y"]}
    )


@pytest.mark.parametrize(("given", "written"), [("1.50", "1.50"), (" .5 ", "0.5"), ("+3", "3"), ("0x10", "16")])
def test_a_number_is_written_as_it_came_where_json_has_it_so(given: str, written: str) -> None:
    text = (
        "name: a\nimage: i\ninputs: {n: {type: number}, l: {type: list, items: number}}\nrun: echo {{ .n }} {{ .l }}\n"
    )
    assert only_step(text, n=given, l=given).script == f"echo {written} [{written}]"


def test_what_has_a_default_need_not_be_given_although_it_is_required() -> None:
    text = "name: a\nimage: i\ninputs: {x: {required: true, default: y}}\nrun: echo {{ .x }}\n"
    assert [finding.code for finding in planned(text).findings] == ["no-effect"]
    assert only_step(text).script == "echo y"
    assert (lint(text, actions=None).parameters_needed, inputs_schema(text)["required"]) == ((), [])


@pytest.mark.parametrize("inputs", ["", "inputs: {x: {required: true}}\n"])
def test_a_value_that_no_document_could_hold_is_told_once(inputs: str) -> None:
    text = f"name: a\nimage: i\n{inputs}run: echo {{{{ .x }}}}\n"
    assert [finding["code"] for finding in refused(text, None, {"x": 10**70})] == ["bad-parameter"]


def test_a_null_is_as_good_as_nothing() -> None:
    assert only_step(DEPLOY, env="staging", tag=None, nothing=None).script == "deploy staging v1 2 false a b"
    assert [finding["code"] for finding in refused(DEPLOY, None, {"env": None})] == ["missing-input"]


def test_an_input_with_nothing_said_of_it_is_a_string() -> None:
    assert only_step("name: a\nimage: i\ninputs:\n  x:\nrun: echo {{ .x }}\n", x=3).script == "echo 3"


def test_an_empty_declaration_takes_nothing() -> None:
    (finding,) = refused("name: a\nimage: i\ninputs: {}\nrun: x\n", None, {"y": 1})
    assert (finding["code"], finding["hint"]) == ("unknown-input", "there are none: 'inputs' is empty")


def test_without_inputs_everything_is_taken_as_before() -> None:
    text = "name: a\nimage: i\nwith: {x: 1}\nrun: echo {{ .x }} {{ .y }}\n"
    for nothing in ("", "inputs: null\n"):
        assert only_step(text + nothing, x="2", y=[1]).script == "echo 2 [1]"


# --- beside `with` ---------------------------------------------------------------------------------------------


def test_with_holds_values_made_of_inputs_that_nobody_can_give() -> None:
    text = "name: a\nimage: i\ninputs: {env: {default: dev}}\nwith: {host: '{{ .env }}.example.org'}\n"
    text += "run: ping {{ .host }}\n"
    assert only_step(text).script == "ping dev.example.org"
    assert only_step(text, env="qa").script == "ping qa.example.org"
    (finding,) = refused(text, None, {"host": "x"})
    assert finding["message"] == "there is no input 'host'"
    assert finding["hint"] == (
        "it is a value of the definition's own; move it from 'with' to 'inputs' to let it be given"
    )


def test_one_name_in_both_is_an_error() -> None:
    (finding,) = refused("name: a\nimage: i\ninputs: {x: {default: 1}}\nwith: {x: 2}\nrun: x\n")
    assert (finding["code"], finding["line"], finding["path"]) == ("repeated-name", 4, "with.x")


def test_a_step_may_still_say_otherwise() -> None:
    text = (
        "name: a\ninputs: {x: {default: '1'}}\nuses:\n  main:\n    - {image: i, run: 'echo {{ .x }}', with: {x: 2}}\n"
    )
    assert only_step(text).script == "echo 2"


def test_templates_see_only_what_is_declared_and_say_so() -> None:
    (finding,) = refused("name: a\nimage: i\ninputs: {repo: {default: r}}\nrun: echo {{ .rpeo }}\n")
    assert finding["message"] == "the parameter 'rpeo' has no value; known are 'repo'"
    assert finding["hint"] == (
        "declare 'rpeo' in 'inputs', or make it of them in 'with'; 'repo' is given: was 'rpeo' meant?"
    )


def test_an_optional_input_that_is_not_given_is_missing_unless_the_template_provides_for_it() -> None:
    text = "name: a\nimage: i\ninputs: {x: {}}\nrun: echo {{ .x }}\n"
    (finding,) = refused(text)
    assert (finding["code"], finding["hint"]) == (
        "missing-parameter",
        "give it when the run is started, or give the input a 'default', or make it 'required'",
    )
    assert only_step(text.replace(".x }}", ".x | default('none') }}")).script == "echo none"


# --- used by another definition ---------------------------------------------------------------------------------

ACTIONS = {"Deploy": DEPLOY}
USE = "name: Use\nuses:\n  main:\n    - dep: Deploy\n      with: {env: staging%s}\n"


def test_an_action_is_given_what_its_inputs_take() -> None:
    step = only_step(USE % ", replicas: '3', dry: true, hosts: x", ACTIONS)
    assert step.script == "deploy staging v1 3 true x"
    assert {one.name: one.origin for one in step.parameters} == {
        "env": "with beside dep Deploy",
        "replicas": "with beside dep Deploy",
        "dry": "with beside dep Deploy",
        "hosts": "with beside dep Deploy",
        "tag": "default of the input of the action 'Deploy'",
    }


def test_what_is_wrong_beside_a_dep_is_told_where_it_stands() -> None:
    text = "name: Use\nuses:\n  main:\n    - dep: Deploy\n      with:\n        replicas: 99\n"
    text += "        hosts: [a, B]\n        tga: v2\n"
    findings = refused(text, ACTIONS)
    assert [(finding["path"], finding["line"], finding["code"]) for finding in findings] == [
        ("uses.main[0].with", 6, "missing-input"),
        ("uses.main[0].with.replicas", 6, "wrong-input"),
        ("uses.main[0].with.hosts[1]", 7, "wrong-input"),
        ("uses.main[0].with.tga", 8, "unknown-input"),
    ]
    assert all(finding["action"] is None for finding in findings)
    assert findings[1]["message"] == (
        "the input 'replicas' of the action 'Deploy' must be an integer from 1 to 10, not the number 99"
    )
    assert [finding["code"] for finding in refused("name: U\nuses: {main: [{dep: Deploy}]}\n", ACTIONS)] == [
        "missing-input"
    ]


def test_an_action_that_uses_one_wrongly_is_named() -> None:
    actions = ACTIONS | {"Middle": USE % ", dry: maybe"}
    (finding,) = refused("name: Top\nuses: {main: [{dep: Middle}]}\n", actions)
    assert (finding["action"], finding["line"], finding["path"]) == ("Middle", 5, "uses.main[0].with.dry")


def test_a_value_made_of_inputs_of_the_caller_is_held_against_those_of_the_action() -> None:
    text = "name: Use\ninputs: {n: {type: integer, required: true}}\nuses:\n  main:\n    - dep: Deploy\n"
    text += "      with: {env: staging, replicas: '{{ .n }}'}\n"
    assert only_step(text, ACTIONS, n="4").script == "deploy staging v1 4 false a b"
    (finding,) = refused(text, ACTIONS, {"n": 40})
    assert finding["path"] == "uses.main[0].with.replicas"
    found = lint(text, actions=library(ACTIONS))
    assert (found.findings, found.parameters_needed) == ((), ("n",))


# --- lint --------------------------------------------------------------------------------------------------------


def test_lint_lists_what_must_be_given_and_asks_for_nothing_else() -> None:
    found = lint(DEPLOY, actions=None)
    assert (found.findings, found.parameters_needed) == ((), ("env",))


def test_lint_tells_what_a_dep_is_given_wrongly() -> None:
    found = lint(USE % ", dry: maybe", actions=library(ACTIONS))
    assert [(finding.severity, finding.path) for finding in found.findings] == [("error", "uses.main[0].with.dry")]
    found = lint(USE % ", tga: '{{ .later }}', dry: '{{ .later }}'", actions=library(ACTIONS))
    assert [(finding.code, finding.path) for finding in found.findings] == [("unknown-input", "uses.main[0].with.tga")]
    assert found.parameters_needed == ("later",)


def test_lint_warns_of_a_template_that_no_input_can_fill() -> None:
    found = lint("name: a\nimage: i\ninputs: {x: {}}\nrun: echo {{ .y }} {{ .x }}\n", actions=None)
    assert [(finding.severity, finding.code) for finding in found.findings] == [("warning", "missing-parameter")]


def test_after_a_fault_of_the_declaration_nothing_is_held_against_it() -> None:
    text = "name: a\nimage: i\ninputs: {x: {type: integer, default: many}, y: {}}\nrun: echo {{ .x }} {{ .y }}\n"
    assert [finding["path"] for finding in refused(text, None, {"z": 1})] == ["inputs.x.default"]


def test_a_template_in_a_default_is_warned_of_and_stays_as_it_is() -> None:
    result = planned(
        "name: a\nimage: i\ninputs: {x: {default: '{{ .y }}'}, y: {}}\nrun: echo {{ .x }}\n", None, {"y": 1}
    )
    assert [finding.code for finding in result.findings] == ["literal-template"]
    (task,) = result.plan.tasks
    assert [step.script for step in task.steps()] == ["echo {{ .y }}"]


def test_what_a_schedule_gives_is_held_against_the_inputs_too() -> None:
    schedule = "schedule:\n  - '@daily'\n  - {cron: '@hourly', with: {replicas: %s, hosts: [a], dry: null}}\n"
    found = lint(DEPLOY + schedule % "3", actions=None)
    assert (found.findings, found.parameters_needed) == ((), ("env",))
    found = lint(DEPLOY + schedule % "30, tga: 1", actions=None)
    assert [(finding.path, finding.line) for finding in found.findings] == [
        ("schedule[1].with.replicas", 14),
        ("schedule[1].with.tga", 14),
    ]


# --- the pipeline dialect ----------------------------------------------------------------------------------------


def test_a_pipeline_has_its_inputs_in_the_environment() -> None:
    text = json.dumps(
        {
            "name": "p",
            "inputs": {
                "n": {"type": "integer", "required": True},
                "level": {"enum": ["low", "high"], "default": "low"},
            },
            "pipelineTasks": [{"name": "t", "steps": [{"image": "a"}]}],
        }
    )
    step = only_step(text, n="3")
    assert [(one.name, one.value) for one in step.parameters] == [("level", "low"), ("n", "3")]
    assert [finding["path"] for finding in refused(text, None, {"level": "mid"})] == ["with.n", "with.level"]
    assert lint(text, actions=None).parameters_needed == ("n",)


# --- limits ------------------------------------------------------------------------------------------------------


def test_all_values_together_are_bounded() -> None:
    inputs = declared(**{f"x{number}": {} for number in range(5)})
    result = check_inputs(inputs, {f"x{number}": "a" * 60_000 for number in range(5)})
    assert [fault.message for fault in result.faults] == [
        "the inputs have 300000 characters together; at most 262144 are taken"
    ]


def test_faults_are_bounded() -> None:
    text = json.dumps({"name": "a", "run": "x", "inputs": {f"x{number}": {"type": "int"} for number in range(100)}})
    with pytest.raises(PistageError) as caught:
        declared_inputs(text)
    assert len(caught.value.details["findings"]) == limits.FINDINGS_MAX  # type: ignore[arg-type]
    inputs = declared(x={"type": "list", "items": "integer"})
    assert len(check_inputs(inputs, {"x": ["a"] * 1000}).faults) == limits.FINDINGS_MAX
    assert len(check_inputs(inputs, {str(number): 1 for number in range(10_000)}).faults) == limits.FINDINGS_MAX


def test_patterns_cost_of_what_a_plan_may_spend() -> None:
    """Ten thousand uses of an action, each with a long text: refused rather than matched for minutes."""
    actions = {"P": "name: P\nimage: i\ninputs: {x: {pattern: '^(a|b)*$'}}\nrun: x\n"}
    steps = "".join(f"    - {{dep: P, with: {{x: {'ab' * 25_000}}}}}\n" for _ in range(20))
    top = "".join("    - {dep: Q}\n" for _ in range(20))
    findings = refused(f"name: a\nuses:\n  main:\n{top}", actions | {"Q": f"name: Q\nuses:\n  main:\n{steps}"})
    assert {finding["code"] for finding in findings} == {"inputs-too-large"}


# --- JSON Schema ---------------------------------------------------------------------------------------------------


def test_the_schema_says_all_that_a_form_needs() -> None:
    schema = inputs_schema(DEPLOY + "description: brings it there\n")
    assert schema == {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Deploy",
        "description": "brings it there",
        "type": "object",
        "properties": {
            "env": {"description": "where to", "type": "string", "enum": ["staging", "production"]},
            "tag": {"type": "string", "pattern": "^v[0-9]+(\\.[0-9]+)*$", "default": "v1"},
            "replicas": {"type": "integer", "minimum": 1, "maximum": 10, "default": 2},
            "share": {"type": "number", "minimum": 0, "maximum": 1},
            "dry": {"type": "boolean", "default": False},
            "hosts": {
                "type": "array", "items": {"type": "string", "pattern": "^[a-z]+$"}, "maxItems": 3,
                "default": ["a", "b"],
            },
        },
        "required": ["env"],
        "additionalProperties": False,
    }  # fmt: skip
    assert list(schema["properties"]) == ["env", "tag", "replicas", "share", "dry", "hosts"]  # type: ignore[call-overload]


def test_a_definition_without_inputs_takes_any_object() -> None:
    assert inputs_schema("name: a\nrun: x\nwith: {y: 1}\n") == {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "a",
        "type": "object",
        "additionalProperties": True,
    }


def test_a_declaration_that_is_wrong_has_no_schema() -> None:
    with pytest.raises(PistageError) as caught:
        inputs_schema("name: a\nrun: x\ninputs: {x: {type: integer, default: many}}\n")
    assert caught.value.code is Code.INVALID


# --- many of both --------------------------------------------------------------------------------------------------

PATTERNS = ["^a", "b$", "^[a-c]*$", "[0-9]{2}", "a|b", "(", "a{2000}", "(?=x)", "x" * 2000]
TEXTS = [
    "",
    "a",
    "b",
    "abc",
    "12",
    "3",
    "3.0",
    "-1",
    "1e3",
    "0.5",
    "true",
    "no",
    "a,b",
    "1,2",
    '["a"]',
    "[1]",
    "[",
    "ä",
]
NUMBERS = [0, 1, 2, 3, -1, 2.5, 3.0, 1e3, 100, 10**20]
ODD: list[Any] = [
    None,
    True,
    False,
    [],
    {},
    {"a": 1},
    float("nan"),
    "\0",
    "\ud800",
    [None],
    [["a"]],
    b"x",
    object(),
    Number("0x1f"),
]


def random_value(rng: random.Random, *, is_odd: bool = True) -> Any:
    match rng.randrange(6 if is_odd else 5):
        case 0:
            return rng.choice(NUMBERS)
        case 1:
            return rng.choice([True, False])
        case 2:
            return [rng.choice([*TEXTS, *NUMBERS, True]) for _ in range(rng.randrange(5))]
        case 5:
            return rng.choice(ODD)
        case _:
            return rng.choice(TEXTS)


def random_declaration(rng: random.Random) -> Any:
    """Sound more often than not: a type and what it has, some of it wrong."""
    if rng.random() < 0.05:
        return rng.choice([None, "string", 3, [], {}, {"type": "bool"}, {"typ": "x"}])
    kind = rng.choice(["string", "integer", "number", "boolean", "enum", "list"])
    made: dict[str, Any] = {"type": kind}
    own = {
        "string": ["pattern", "min_length", "max_length", "options"],
        "integer": ["min", "max", "options"],
        "number": ["min", "max", "options"],
        "list": ["items", "min_items", "max_items"],
    }
    keys = own.get(kind, []) if rng.random() < 0.9 else [key for row in own.values() for key in row]
    for key in keys:
        if rng.random() < 0.35:
            made[key] = {
                "pattern": lambda: rng.choice(PATTERNS if rng.random() < 0.2 else PATTERNS[:5]),
                "options": lambda: rng.sample(TEXTS[1:] if kind == "string" else NUMBERS, rng.randrange(1, 4)),
                "items": lambda: rng.choice(
                    ["string", "integer", "number", "boolean", {"options": ["a", "b"]}, {"type": "integer", "min": 1}]
                ),
            }.get(key, lambda: rng.choice([0, 1, 2, 3, 3, 5]))()
    if kind == "enum":
        made["options"] = rng.sample(TEXTS[1:], rng.randrange(1, 5))
    if rng.random() < 0.2:
        made["default"] = random_value(rng, is_odd=False)
    if rng.random() < 0.3:
        made["required"] = True
    return made


def random_inputs(rng: random.Random) -> Inputs | None:
    """None where the declaration is refused."""
    text = json.dumps(
        {"name": "a", "run": "x", "inputs": {f"x{n}": random_declaration(rng) for n in range(rng.randrange(1, 4))}}
    )
    try:
        return declared_inputs(text)
    except PistageError as error:
        assert error.code is Code.INVALID, text
        findings = error.details["findings"]
        assert isinstance(findings, list)
        assert all(finding["path"].startswith("inputs") and finding["hint"] for finding in findings), text
        return None


@pytest.mark.parametrize("start", [0, 1000, 2000, 3000])
def test_any_value_against_any_declaration_is_values_or_faults(start: int) -> None:
    sound = accepted = 0
    for number in range(start, start + 1000):
        rng = random.Random(number)
        inputs = random_inputs(rng)
        if inputs is None:
            continue
        sound += 1
        names = [*inputs.entries, "x0", "X1", "y"]
        for _ in range(5):
            given = {rng.choice(names): random_value(rng) for _ in range(rng.randrange(4))}
            result = check_inputs(inputs, given)
            assert all(fault.message and fault.hint and len(fault.message) < 1000 for fault in result.faults)
            assert {fault.at[0] for fault in result.faults} <= {*given, *inputs.entries}
            if not result.faults:
                accepted += 1
                again = check_inputs(inputs, result.values)
                assert (again.faults, again.values) == ((), result.values), (number, given)
    assert sound > 400 and accepted > 400, "nearly all is refused: little is tested"


@pytest.mark.parametrize(("start", "end"), [(10_000, 10_300), pytest.param(20_000, 25_000, marks=pytest.mark.slow)])
def test_the_schema_and_the_check_agree(start: int, end: int) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    seen = {True: 0, False: 0}
    for number in range(start, end):
        rng = random.Random(number)
        inputs = random_inputs(rng)
        if inputs is None:
            continue
        schema = schema_of("a", "", inputs)
        jsonschema.Draft202012Validator.check_schema(schema)
        validator = jsonschema.Draft202012Validator(schema)
        names = [*inputs.entries, *inputs.entries, "y"]
        for _ in range(5):
            given = {rng.choice(names): random_value(rng, is_odd=False) for _ in range(rng.randrange(4))}
            result = check_inputs(inputs, given)
            is_valid = validator.is_valid(given)
            seen[is_valid] += 1
            if is_valid:  # what a form made of the schema lets through is taken
                assert not result.faults, (number, given, result.faults)
            if not result.faults:  # what is taken is, once it is read, as the schema says
                values = {name: plain(value) for name, value in result.values.items()}
                assert validator.is_valid(values), (number, given, values)
            elif all(_is_typed(given.get(name), one.domain.type) for name, one in inputs.entries.items()):
                assert not is_valid
    assert min(seen.values()) > (end - start) / 4, "one answer is given too rarely to compare"


def _is_typed(value: object, type_: str) -> bool:
    kinds = {"string": str, "enum": str, "integer": int | float, "number": int | float, "boolean": bool, "list": list}
    return value is None or isinstance(value, kinds[type_])  # type: ignore[arg-type]


def test_no_message_is_longer_than_a_line_of_a_terminal_can_bear() -> None:
    long = "x" * 190
    result = check_inputs(declared(**{long: {"options": ["y" * 60_000], "pattern": "y" * 900}}), {long: "z" * 60_000})
    assert result.faults and all(len(fault.message) < 400 for fault in result.faults)
    assert not any(re.search(r"[\n\x00]", fault.message) for fault in result.faults)
