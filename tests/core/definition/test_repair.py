"""R3 and R4: what is tolerated, what is said about it, and what is left alone."""

import pytest

from pistage.core.definition import Lint, lint
from tests.core.definition.documents import only_step, planned, refused, seed, seed_actions

R3 = """\
name: a
uses:
  main:
    - image: alpine
        # a comment
        run: |
          one
            two

        env:
            A: 1
    - run: three
"""


def checked(text: str) -> Lint:
    return lint(text, actions=None)


def test_r3_keys_deeper_than_the_first_are_read_beside_it() -> None:
    plan = planned(R3).plan
    first, second = plan.tasks[0].steps()
    assert (first.script, dict(first.env), second.script) == ("one\n  two\n", {"A": "1"}, "three")


def test_r3_is_a_warning_with_line_numbers_and_shows_the_normalised_text() -> None:
    result = checked(R3)
    (finding,) = result.findings
    assert (finding.severity, finding.line, finding.column, finding.path) == ("warning", 4, 7, "uses.main[0]")
    assert finding.message == "lines 6 to 11 are indented deeper than 'image' on line 4; read as keys beside 'image'"
    assert result.normalised == R3.replace("        run", "      run").replace(
        "          one\n            two", "        one\n          two"
    ).replace("        env:\n            A", "      env:\n          A")
    assert checked(result.normalised).findings == ()


def test_r3_places_of_later_errors_are_those_of_the_text_as_it_came() -> None:
    errors = [f for f in refused(R3.replace("A: 1", "PISTAGE_A: 1")) if f["severity"] == "error"]
    assert [(f["line"], f["column"], f["path"]) for f in errors] == [(11, 13, "uses.main[0].env.PISTAGE_A")]


def test_r3_also_below_a_quoted_scalar() -> None:
    text = "name: a\nuses:\n  main:\n    - dep: 'Clone Repo, Pistages if omitted'\n        image: bitnami/git\n"
    (step,) = planned(text, seed_actions()).plan.tasks[0].steps()
    assert step.script == "git clone git@github.com:projecteru2/pistages.git"


def test_r3_repairs_every_step_that_needs_it() -> None:
    steps = "    - image: alpine\n         run: x\n" * 10
    assert len(list(planned(f"name: a\nuses:\n  main:\n{steps}").plan.tasks[0].steps())) == 10


@pytest.mark.parametrize(
    "text",
    [
        "name: a\n  image: alpine\nrun: x\n",  # not in an item
        "name: a\nuses:\n  main:\n    - dep: b\n      c: d\n        e: f\n",  # below a key that is not the first
        "name: a\nuses:\n  main:\n    - dep: b\n        image: c\n       with: d\n",  # no two depths agree
        "name: a\nimage: alpine\nrun: echo a: b\n",  # another fault altogether
        "name: a\nuses:\n  main:\n    - dep: b\n\t    image: c\n",  # tabs
    ],
)
def test_r3_nothing_else_is_rewritten(text: str) -> None:
    result = checked(text)
    assert result.normalised is None
    assert [finding.code for finding in result.findings] == ["bad-yaml"]


def test_r3_the_seed_is_read() -> None:
    result = checked(seed("build-with-repo"))
    assert result.normalised == (
        "name: Build Pistages\nuses:\n  main:\n    - dep: Clone Repo\n      image: bitnami/git\n      with:\n"
        "          repo: git@github.com:anrs/aa.git\n"
    )


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("{{ .repo }}", "{{ .repo }}"),
        ("{{.repo}}", "{{.repo}}"),
        ("{{- .repo -}}", "{{- .repo -}}"),
        ("{{ .repo }}/x  # why", "{{ .repo }}/x"),
        ("{{ .repo | default('it') }}", "{{ .repo | default('it') }}"),
        ('{{ .repo ~ ": a" }} b: c', '{{ .repo ~ ": a" }} b: c'),
    ],
)
def test_r4_an_unquoted_template_is_read_as_its_text(value: str, read: str) -> None:
    result = checked(f"name: a\nimage: alpine\nrun: {value}\n")
    (finding,) = result.findings
    assert (finding.severity, finding.code, finding.line, finding.column) == ("warning", "unquoted-template", 3, 6)
    assert finding.path == "run"
    assert finding.message.endswith(f"read as the text {read}")
    assert result.normalised is not None
    assert checked(result.normalised).findings == ()


def test_r4_in_lists_and_flow_mappings() -> None:
    text = "name: a\nimage: alpine\nrun:\n  - {{ .x }}\n  - b\nenv: {A: {{ .x }}, B: [ {{ .x }} ]}\n"
    text = text.replace("B: [ {{ .x }} ]", "B: {{ .x }}-{{ .x }}")
    step = only_step(text, x="y")
    assert (step.script, dict(step.env)) == ("y\nb", {"A": "y", "B": "y-y"})


def test_r4_lines_of_a_script_are_left_alone() -> None:
    text = "name: a\nimage: alpine\nrun: |\n  key: {{ .x }}\n  - {{ .x }}\n"
    assert checked(text).normalised is None
    assert only_step(text, x="y").script == "key: y\n- y\n"


def test_r3_and_r4_in_one_document() -> None:
    text = "name: a\nuses:\n  main:\n    - image: alpine\n        run: {{ .x }} --flag\n"
    assert only_step(text, x="y").script == "y --flag"


@pytest.mark.slow
def test_repairs_end_where_reading_again_gets_expensive() -> None:
    step = "    - image: alpine\n         run: x\n"
    assert len(list(planned(f"name: a\nuses:\n  main:\n{step * 150}").plan.tasks[0].steps())) == 150
    assert [f["code"] for f in refused(f"name: a\nuses:\n  main:\n{step * 3000}")] == ["bad-yaml"]
