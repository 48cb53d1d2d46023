"""Scripts in definitions: what a step's program becomes, which image it gets, and that nothing of it is a template."""

import base64
import json
import random
from typing import Any

import pytest

from pistage.core import limits
from pistage.core.definition import make_plan, script_document
from pistage.core.definition.scripts import literal
from pistage.core.definition.templates import is_template, parse_template, render
from pistage.core.definition.values import Fuel
from pistage.core.demand import demands_of, mismatches, read
from pistage.core.languages import DEFAULTS, Installer
from pistage.core.model import AgentInfo, Capacity
from pistage.core.plan import FailureClass, Plan, Program, Step
from pistage.errors import PistageError
from tests.core.definition.documents import only_step, plan_of, planned, refused


def program_in(text: str) -> Program:
    program = only_step(text).program
    assert program is not None
    return program


def steps_of(plan: Plan) -> list[Step]:
    return [step for task in plan.tasks for step in task.steps()]


def why_not(plan: Plan, *runtimes: str, **said: Any) -> list[str]:
    """What keeps the plan's first task from such an agent."""
    info = AgentInfo(
        id="a", name="a", incarnation="1", version="1", runtimes=runtimes,
        capacity=Capacity(cpus_milli=1, memory_bytes=1), **said,
    )  # fmt: skip
    return list(mismatches(read(demands_of(plan)[0]), info))


def test_a_script_has_its_languages_image_and_interpreter() -> None:
    plan = plan_of("name: a\nscript: print(1)\nfile: a.mjs\n")
    (context,) = plan.tasks[0].contexts
    assert (context.image, context.language) == (DEFAULTS["node"].image, "node")
    (step,) = steps_of(plan)
    assert step.name == "a.mjs"
    assert step.program == Program(
        language="node", text="print(1)", ending=".mjs", command=("node",), installer=Installer.NPM
    )


def test_nothing_of_a_script_is_rendered() -> None:
    step = only_step(
        "name: a\nlanguage: python\nwith: {x: 1}\nscript: '{{ .x }}{% if %}'\nargs: ['{{ .x }}', 2, true]\n"
        "stdin: '{{ .y }}'\nenv: {A: '{{ .x }}'}\n"
    )
    assert step.program is not None
    assert (step.program.text, step.program.args) == ("{{ .x }}{% if %}", ("{{ .x }}", "2", "true"))
    assert base64.b64decode(step.program.stdin) == b"{{ .y }}"
    assert step.env == {"A": "1"}
    assert [parameter.name for parameter in step.parameters] == ["x"]


def test_input_may_be_bytes() -> None:
    assert program_in("name: a\nscript: x\nlanguage: sh\nstdin: {base64: AP8=}\n").stdin == "AP8="


@pytest.mark.parametrize(
    ("steps", "contexts"),
    [
        ("[{script: x, language: sh, image: mine}]", [("mine", None)]),
        ("[{image: first, run: y}, {script: x, language: sh}]", [("first", None)]),
        ("[{script: x, language: sh}, {script: y, language: sh}]", [("alpine:3", "sh")]),
        ("[{script: x, language: sh}, {run: y}]", [("alpine:3", "sh")]),
        ("[{dep: Act, image: replaced}]", [("replaced", None)]),
        ("[{dep: Act}]", [("alpine:3", "sh")]),
        ("[{image: first, run: y}, {dep: Act}]", [("first", None)]),
    ],
)
def test_its_languages_image_is_a_last_resort(steps: str, contexts: list[tuple[str, str | None]]) -> None:
    action = {"Act": "name: Act\nscript: x\nlanguage: sh\n"}
    plan = planned(f"name: a\nuses: {{main: {steps}}}\n", action).plan
    assert [(context.image, context.language) for context in plan.tasks[0].contexts] == contexts


def test_a_group_of_scripts_alone_can_do_without_its_image() -> None:
    plan = plan_of("name: a\nuses: {main: [{script: x, language: sh}, {script: y, language: python}]}\n")
    assert why_not(plan, "docker") == []
    assert why_not(plan, "sandbox", languages=("python", "sh")) == []
    assert why_not(plan, "sandbox", languages=("sh",)) == ["has no interpreter for python"]
    assert why_not(plan, "host") == ["has no interpreter for python", "has no interpreter for sh"]


def test_what_it_requires_is_for_agents_that_can_install_it() -> None:
    plan = plan_of(
        "name: a\nuses: {main: [{script: x, language: python, requirements: [six]}, {script: y, language: sh}]}\n"
    )
    languages = ("python", "sh")
    assert why_not(plan, "docker") == why_not(plan, "host", languages=languages, installs=languages) == []
    assert why_not(plan, "sandbox", languages=languages) == ["cannot install what a script in python requires"]


@pytest.mark.parametrize(
    "text",
    [
        "name: a\nscript: x\nlanguage: sh\nimage: mine\n",
        "name: a\nuses: {main: [{script: x, language: sh}, {run: y}]}\n",
    ],
)
def test_an_image_that_was_named_or_that_a_command_needs_is_needed(text: str) -> None:
    plan = plan_of(text)
    assert why_not(plan, "sandbox", languages=("sh",)) == ["has no engine to run images with"]
    assert why_not(plan, "sandbox", languages=("sh",), ignores_images=True) == []
    assert why_not(plan, "sandbox", ignores_images=True) == ["has no interpreter for sh"]


def test_a_language_that_no_master_knows_is_for_agents_that_have_it() -> None:
    result = planned("name: a\nscript: puts 1\nlanguage: ruby\n")
    assert [finding.code for finding in result.findings] == ["unknown-language"]
    assert why_not(result.plan, "sandbox", languages=("ruby",)) == []
    assert why_not(result.plan, "docker") == ["runs images, and the masters know none for the language of a script"]


def test_a_language_that_is_nearly_known_is_said_to_be() -> None:
    (finding,) = planned("name: a\nscript: x\nlanguage: pyton\n").findings
    assert finding.hint == "did you mean 'python'?"


@pytest.mark.parametrize(
    ("keys", "code", "path"),
    [
        ("script: ''", "empty", "script"),
        ("script: 5", "wrong-kind", "script"),
        ("script: [a]", "wrong-kind", "script"),
        ("script: x", "no-language", "script"),
        ("script: x\nlanguage: 'a/b'", "bad-language", "language"),
        ("script: x\nlanguage: sh\nfile: ' a'", "bad-name", "file"),
        ("script: x\nlanguage: sh\nargs: a b", "wrong-kind", "args"),
        ("script: x\nlanguage: sh\nargs: [[a]]", "wrong-kind", "args[0]"),
        ("script: x\nlanguage: sh\nstdin: 5", "wrong-kind", "stdin"),
        ("script: x\nlanguage: sh\nstdin: {base64: '?'}", "bad-base64", "stdin.base64"),
        ("script: x\nlanguage: sh\nrequirements: [a]", "no-installer", "requirements"),
        ("script: x\nlanguage: python\nrequirements: a", "wrong-kind", "requirements"),
        ("script: x\nlanguage: sh\ncommand: y", "script-and-command", "command"),
        ("run: x\nimage: i\nargs: [a]", "no-script", "args"),
        ("run: x\nimage: i\nrequirements: [a]", "no-script", "requirements"),
        ("script: x\nlanguage: sh\nrun: y", "two-dialects", "script"),
        ("script: x\nlanguage: sh\nuses: {main: [{run: y}]}", "two-dialects", "script"),
    ],
)
def test_what_is_wrong_is_said_at_its_place(keys: str, code: str, path: str) -> None:
    found = refused(f"name: a\n{keys}\n")
    assert (found[0]["code"], found[0]["path"]) == (code, path), found


@pytest.mark.parametrize(
    "requirement",
    ["-r /etc/passwd", "--index-url=http://evil", "git+https://evil/x", "./here", "/there", "a @ http://evil/a.whl",
     "http://evil/a.whl", "a b", "a\nb", "", "é"],
)  # fmt: skip
@pytest.mark.parametrize("language", ["python", "node"])
def test_a_requirement_is_a_package_and_nothing_else(language: str, requirement: str) -> None:
    document = {"name": "a", "script": "x", "language": language, "requirements": [requirement]}
    (finding,) = refused(json.dumps(document))
    assert finding["path"] == "requirements[0]"


@pytest.mark.parametrize(
    ("language", "requirement"),
    [("python", "requests"), ("python", "requests[socks]==2.32.3"), ("python", "a.b_c >= 1, < 2"), ("python", "x~=1.0"),
     ("node", "zod"), ("node", "zod@^3.23"), ("node", "@scope/name@1.0.0"), ("node", "left-pad@latest")],
)  # fmt: skip
def test_a_requirement_as_pip_and_npm_have_it(language: str, requirement: str) -> None:
    document = {"name": "a", "script": "x", "language": language, "requirements": [requirement]}
    assert program_in(json.dumps(document)).requirements == (requirement,)


def test_the_pipeline_dialect_has_no_scripts_and_says_so() -> None:
    task = {"name": "t", "steps": [{"name": "s", "image": "i", "script": "x"}]}
    found = refused(json.dumps({"name": "a", "pipelineTasks": [task]}))
    assert "misplaced-key" in [finding["code"] for finding in found], found


# --- a script alone ----------------------------------------------------------------------------------------


def test_a_script_alone_is_named_after_its_file_and_tried_once() -> None:
    document = script_document("print(1)", {"file": "dir/a.py", "timeout": "5s", "args": [], "image": None})
    assert json.loads(document) == {
        "name": "a.py", "script": "print(1)", "retry": 0, "file": "dir/a.py", "timeout": "5s"
    }  # fmt: skip
    task = plan_of(document).tasks[0]
    assert (task.retry.limits[FailureClass.FAILURE], task.retry.limits[FailureClass.LOST]) == (0, 3)


def test_any_script_comes_through_its_document_as_it_is() -> None:
    rng = random.Random(6)
    pieces = ["{{", "}}", "{%", "%}", "if", "raw", "endraw", "{#", "'", '"', "\\", "\n", "\r\n", "\t", "\x01", "\x7f",
              "\x85", "\ufeff", "\u2028", "\ufffe", "é", "😀", "#!", " ", "a", "---", "- ", ": "]  # fmt: skip
    for _ in range(300):
        words = ["".join(rng.choices(pieces, k=rng.randrange(1, 12))) for _ in range(4)]
        text = f"x{words[0]}"
        document = script_document(text, {"language": "python", "args": words, "env": {"A": words[1]}})
        (step,) = steps_of(make_plan(document, actions=lambda _: None).plan)
        assert step.program is not None
        assert (step.program.text, step.program.args, step.env) == (text, tuple(words), {"A": words[1]})


def test_a_literal_renders_as_the_text_it_was() -> None:
    rng = random.Random(7)
    for _ in range(2_000):
        text = "".join(rng.choices("{{{%}-'\"# \nraw if end", k=rng.randrange(20)))
        written = literal(text)
        assert (render(parse_template(written), {}, Fuel()) if is_template(written) else written) == text


@pytest.mark.parametrize("bad", ["\0", "\ud800"])
@pytest.mark.parametrize("key", ["script", "args", "stdin", "env", "file"])
def test_what_no_command_can_hold_is_refused(bad: str, key: str) -> None:
    keys = {"language": "sh"} | {
        "args": {"args": [bad]}, "stdin": {"stdin": bad}, "env": {"env": {"A": bad}}, "file": {"file": f"a{bad}.sh"},
    }.get(key, {})  # fmt: skip
    with pytest.raises(PistageError) as refusal:
        plan_of(script_document(bad if key == "script" else "x", keys))
    assert refusal.value.code == "invalid"


def test_a_megabyte_of_code_and_one_of_input_are_a_plan() -> None:
    code = "#" * limits.SCRIPT_BYTES_MAX
    data = base64.b64encode(b"\xff" * limits.SCRIPT_BYTES_MAX).decode()
    document = script_document(code, {"language": "python", "stdin": {"base64": data}})
    plan = make_plan(document, actions=lambda _: None, bytes_max=limits.SCRIPT_DOCUMENT_BYTES_MAX).plan
    assert [step.program.stdin if step.program else "" for step in steps_of(plan)] == [data]


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"script": "#" * (limits.SCRIPT_BYTES_MAX + 1)}, "script"),
        ({"stdin": "x" * (limits.SCRIPT_BYTES_MAX + 1)}, "stdin"),
        ({"args": ["x" * (limits.SCRIPT_ARGUMENT_BYTES_MAX + 1)]}, "args"),
        ({"args": ["x" * 100_000] * 6}, "args"),
        ({"requirements": ["x"] * 201}, "requirements"),
    ],
)
def test_more_than_can_be_carried_is_refused(keys: dict[str, object], path: str) -> None:
    given = {"script": "x", "language": "python"} | keys
    document = script_document(str(given.pop("script")), given)
    with pytest.raises(PistageError) as refusal:
        make_plan(document, actions=lambda _: None, bytes_max=limits.SCRIPT_DOCUMENT_BYTES_MAX)
    findings = refusal.value.details["findings"]
    assert isinstance(findings, list)
    assert [(finding["code"], finding["path"]) for finding in findings] == [("too-large", path)]
