"""P9: what a template may say, how values are written, and that every template is bounded."""

import time

import pytest

from pistage.core.definition.filters import FILTERS
from pistage.core.definition.templates import is_template, parse_template, render
from pistage.core.definition.values import Fuel, Number, TemplateError, Value
from tests.core.definition.documents import only_step, script_of

NAMES: dict[str, Value] = {
    "repo": "git@x:a/b.git",
    "a": {"b": Number("1.50"), "c": {"d": ["x", Number("2")]}},
    "yes": True,
    "no": False,
    "n": Number("007"[2:]),
    "big": Number("1e3"),
    "list": ["x", Number("2"), True],
    "quote": "it's",
    "empty": "",
    "text_false": "false",
    "braces": "{{ .repo }}",
}


def rendered(text: str) -> str:
    return render(parse_template(text), NAMES, Fuel())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ .repo }}", "git@x:a/b.git"),
        ("{{.repo}}", "git@x:a/b.git"),
        ("a {{- .repo -}} b", "agit@x:a/b.gitb"),
        ("{{ repo }}", "git@x:a/b.git"),
        ("{{ .a.b }}", "1.50"),
        ("{{ a.c.d[1] }}", "2"),
        ("{{ .a['b'] }}", "1.50"),
        ("{{ .yes }} {{ .no }}", "true false"),
        ("{{ .n + 1 }} {{ .n - 1 }} {{ -.n }}", "8 6 -7"),
        ("{{ .big }}", "1e3"),
        ("{{ .list }}", '["x", 2, true]'),
        ("{{ .a }}", '{"b": 1.50, "c": {"d": ["x", 2]}}'),
        ("{{ .a | tojson }}", '{"b": 1.50, "c": {"d": ["x", 2]}}'),
        ("{{ .quote | q }}", "'it'\"'\"'s'"),
        ("{{ .empty | q }}", "''"),
        ("{{ .repo | upper | lower | replace('git', 'hg') }}", "hg@x:a/b.hg"),
        ("{{ .missing | default('x') }} {{ .a.z | d(.repo) }}", "x git@x:a/b.git"),
        ("{{ .empty | default('x') }}{{ .empty | default('x', true) }}", "x"),
        ("{{ .missing is defined }} {{ .repo is defined }} {{ .missing is undefined }}", "false true true"),
        ("{{ .list | join(', ') }} {{ .list | length }} {{ .list | first }} {{ .list | last }}", "x, 2, true 3 x true"),
        ("{{ 'a b  c' | split | join('-') }} {{ 'a,b' | split(',') | last }}", "a-b-c b"),
        ("{{ '5' | int + 1 }} {{ '5.9' | int }} {{ '0x1f' | int }} {{ 3 | float }}", "6 5 31 3.0"),
        ("{{ ' x ' | trim }} {{ 'x y' | title }} {{ 'xY' | capitalize }} {{ 5 | string }}", "x X Y Xy 5"),
        ("{{ 'a' ~ 1 ~ .yes }} {{ 'a' + 'b' }}", "a1true ab"),
        ("{{ 1 if .yes else 2 }}{{ 'x' if .no }}", "1"),
        ("{{ .n == 7 and .n > 6 and not .no or .missing }}", "true"),
        ("{{ 1 < 2 < 3 }} {{ 'x' in .list }} {{ 'y' not in .list }} {{ 'b' in .a }}", "true true true true"),
        ("{% if .yes %}a{% elif .no %}b{% else %}c{% endif %}", "a"),
        ("{% if .no %}a{% elif .n == 7 %}b{% else %}c{% endif %}", "b"),
        ("{% if .text_false %}a{% else %}c{% endif %}", "c"),
        ("{% if .yes %}{% if .no %}x{% endif %}y{% endif %}", "y"),
        ("a\n{%- if .yes -%} b {%- endif -%}\nc", "abc"),
        ("{% raw %}{{ .ID }} {% if %}{% endraw %}", "{{ .ID }} {% if %}"),
        ("{{ '{{' }} {{ \"a }} .b %}\" }}", "{{ a }} .b %}"),
        ("{{ 'a.b .c' }}", "a.b .c"),
        ("{{ .braces }}", "{{ .repo }}"),
    ],
)
def test_a_template_renders_to(text: str, expected: str) -> None:
    assert rendered(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "${VAR}",
        "$(date)",
        "${#array[@]}",
        "${VAR%%.*}",
        "${VAR%}",
        "{%s}",
        "printf '{%d}'",
        "{a,b}",
        "awk '{ print }'",
        "{# not a comment #}",
        "{ {",
        "} }",
        "}}",
        "%}",
        "{%",
    ],
)
def test_the_shell_is_left_alone(text: str) -> None:
    assert not is_template(text)
    assert script_of(text) == text


def test_a_script_keeps_its_last_newline_and_its_indentation() -> None:
    text = "name: a\nimage: alpine\nrun: |\n  {{ .x }}\n    b\n\nwith: {x: 1}\n"
    assert only_step(text).script == "1\n  b\n"


def test_a_value_is_never_rendered_again() -> None:
    assert script_of("echo {{ .x }}", x="{{ .y }} {% if %}") == "echo {{ .y }} {% if %}"
    text = "name: a\nimage: alpine\nrun: echo {{ .y }}\nwith: {y: '{{ .x }}'}\n"
    assert only_step(text, x="{{ .z }}").script == "echo {{ .z }}"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (8, "8"),
        (1.5, "1.5"),
        (True, "true"),
        (False, "false"),
        ("08", "08"),
        ([1, "a"], '[1, "a"]'),
        ({"a": 1}, '{"a": 1}'),
    ],
)
def test_values_from_a_program_are_written_as_in_a_document(value: object, written: str) -> None:
    assert script_of("{{ .x }}", x=value) == written


@pytest.mark.parametrize(
    "number", ["8", "08", "1.50", "1e3", "0x1F", "0o14", ".5", "+1", "-0", "12:30:00", "2024-01-01"]
)
def test_numbers_render_as_written(number: str) -> None:
    assert (
        only_step(f"name: a\nimage: alpine\nrun: sleep {{{{ .x }}}}\nwith: {{x: {number}}}\n").script
        == f"sleep {number}"
    )


BOMBS = [
    "{{ 'a' * 100000000 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ 'a' | center(1000000000) }}",
    "{{ '%9999999d' | format(1) }}",
    "{{ 'a' | indent(999999999) }}",
    "{{ range(1000000000) | list }}",
    "{% for a in range(10 ** 9) %}x{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set x = 'a' %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ cycler('a').next() }}",
    "{{ lipsum(10000) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ 'aaaaaaaaaa'" + "| replace('a', 'aaaaaaaaaa')" * 12 + " }}",
    "{{ '" + "a" * 1000 + "'" + "| replace('a', '" + "b" * 1000 + "') | replace('b', '" + "c" * 1000 + "') }}",
    "{{ " + "(" * 1000 + "1" + ")" * 1000 + " }}",
    "{{ " + "[" * 1000 + "]" * 1000 + " }}",
    "{{ " + "not " * 5000 + "1 }}",
    "{{ " + "-" * 5000 + "1 }}",
    "{{ 1" + " + 1" * 5000 + " }}",
    "{{ a" + ".b" * 5000 + " }}",
    "{{ 'a'" + " | upper" * 5000 + " }}",
    "{{ 1" + " if 1 else 1" * 1000 + " }}",
    "{{ " + "9" * 10000 + " }}",
    "{{ '" + "\\'" * 20000,
    "{{ " + "\"a'" * 10000,
    "{% if 1 %}" * 2000,
    "{{ {'a': 1} }}",
    "{{ [1, 2][::1] }}",
    "{{ 'a'.join }}",
    "{{ .repo['x'] }}",
    "{{ '\\N{BULLET}' }}",
    "{{ 'a' | map('upper') | list }}",
    "{{ .list | sum }}",
    "{{ .repo is callable }}",
    "{{ .repo | q(*.list) }}",
    "{{ .repo | default(boolean=true) }}",
]


@pytest.mark.parametrize("text", BOMBS, ids=lambda text: text[:40])
def test_a_bomb_is_refused_at_once(text: str) -> None:
    started = time.perf_counter()
    with pytest.raises(TemplateError) as caught:
        rendered(text)
    assert caught.value.message
    assert time.perf_counter() - started < 1


def test_output_is_bounded_for_each_value_and_for_the_whole_plan() -> None:
    half = "x" * 2**19
    one = parse_template("{{ .x }}")
    assert len(render(one, {"x": half}, Fuel())) == 2**19
    with pytest.raises(TemplateError, match="more than 1048576 bytes"):
        render(parse_template("{{ .x }}{{ .x }}{{ .x }}"), {"x": half}, Fuel())
    fuel = Fuel()
    with pytest.raises(TemplateError, match="in all"):
        for _ in range(100):
            render(one, {"x": half}, fuel)


def test_work_that_leaves_no_output_is_bounded_too() -> None:
    with pytest.raises(TemplateError, match="in all"):
        render(parse_template("{{ .x | upper | lower | length }}" * 1000), {"x": "x" * 2**17}, Fuel())


@pytest.mark.slow
def test_parsing_is_bounded_for_the_whole_plan() -> None:
    fuel = Fuel()
    started = time.perf_counter()
    with pytest.raises(TemplateError, match="in all"):
        for number in range(1000):
            parse_template("".join(f"{{{{ {number} + {each} }}}}" for each in range(300)), fuel)
    assert time.perf_counter() - started < 5


def test_no_filter_makes_more_than_it_pays_for() -> None:
    for name, apply in FILTERS.items():
        for value in ("ß" * 1000, "'" * 1000, "\u0390" * 1000, "\x00" * 1000):
            if name in ("int", "float", "join", "replace"):
                continue
            apply(Fuel(), value)
