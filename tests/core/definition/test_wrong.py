"""Every wrong document is refused with exactly these findings."""

import pytest

from pistage.core import limits
from pistage.core.definition import lint
from pistage.errors import PistageError
from tests.core.definition.documents import library, planned, refused
from tests.core.definition.wrong import ACTIONS, WRONG, Wrong


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_a_wrong_document_is_refused_with_its_place_and_what_to_do(wrong: Wrong) -> None:
    findings = refused(wrong.text, ACTIONS)
    keys = ("severity", "code", "action", "line", "column", "path", "message", "hint")
    assert tuple(tuple(finding[key] for key in keys) for finding in findings) == wrong.findings


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_every_error_has_a_hint_and_a_place(wrong: Wrong) -> None:
    for severity, code, _, line, column, _, message, hint in wrong.findings:
        assert severity in ("error", "warning")
        assert code and message and hint
        assert line >= 1 and column >= 1


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_lint_survives_every_wrong_document(wrong: Wrong) -> None:
    lint(wrong.text, actions=library(ACTIONS))
    lint(wrong.text, actions=None)


def test_the_message_is_the_first_error_in_one_sentence() -> None:
    with pytest.raises(PistageError) as caught:
        planned("name: a\nimage: alpine\nrun: x\ntimeout: soon\nqueue: a/b\n")
    assert caught.value.message == (
        "line 4, column 10, timeout: timeout must be a duration up to 7d: 90s, 10m, 1h30m or a number of seconds,"
        " not the text 'soon' (and 1 more)"
    )
    assert caught.value.hint == "write for example 10m"


def test_all_errors_come_at_once() -> None:
    text = "name: a\nuses:\n  one: [{image: alpine, run: 5}]\n  two: [{image: 5, run: x}]\n  three: []\n"
    assert [finding["path"] for finding in refused(text)] == ["uses.one[0].run", "uses.two[0].image", "uses.three"]


def test_errors_are_at_most_a_hundred() -> None:
    steps = "".join(f"  - {{image: alpine, run: {number}}}\n" for number in range(300))
    findings = refused(f"name: a\nuses:\n main:\n{steps}")
    assert len(findings) == limits.FINDINGS_MAX


def test_an_error_inside_an_action_names_the_action_and_its_own_line() -> None:
    (finding,) = refused("name: a\nuses:\n  main:\n    - dep: Broken\n", ACTIONS)
    assert (finding["action"], finding["line"], finding["path"]) == ("Broken", 4, "timeout")


def test_an_error_in_an_action_that_is_used_often_is_told_once() -> None:
    steps = "    - dep: Broken\n" * 20
    assert len(refused(f"name: a\nuses:\n  main:\n{steps}", ACTIONS)) == 1
