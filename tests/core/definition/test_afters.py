"""`after` of a definition: what it comes after, in each way that it is written."""

import pytest

from pistage.core.definition import lint
from pistage.core.triggers.settings import After, Ending

HEAD = "name: Deploy\nimage: busybox\nrun: echo\n"
BUILD = After(pipeline="Build")


@pytest.mark.parametrize(
    ("text", "afters"),
    [
        ("", ()),
        ("after:\n", ()),
        ("after: Build\n", (BUILD,)),
        ("after: {pipeline: Build}\n", (BUILD,)),
        ("after: {pipeline: Build, state: failed}\n", (After(pipeline="Build", state=Ending.FAILED),)),
        ("after: [Build, {pipeline: Test, state: ended}]\n", (BUILD, After(pipeline="Test", state=Ending.ENDED))),
        ("after: [Build, Build]\n", (BUILD,)),
    ],
)
def test_what_it_comes_after(text: str, afters: tuple[After, ...]) -> None:
    found = lint(HEAD + text, actions=None)
    assert (found.findings, found.afters) == ((), afters)


def test_a_pipeline_json_has_it_too() -> None:
    text = '{"name": "P", "after": "Build", "pipelineTasks": [{"name": "a", "steps": [{"name": "s", "image": "i"}]}]}'
    assert lint(text, actions=None).afters == (BUILD,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("after: 1\n", "after must be a name"),
        ("after: {state: failed}\n", "there is no 'after.pipeline'"),
        ("after: {pipeline: Build, state: done}\n", "after.state must be succeeded, failed or ended"),
        ("after: [[Build]]\n", "after must be a name"),
        ("after: ' Build'\n", "after begins or ends with a blank"),
        ("after: [Build, Deploy]\n", "'Deploy' comes after itself"),
        (f"after: [{', '.join(f'B{n}' for n in range(21))}]\n", "'after' has 21 items; a definition has at most 20"),
    ],
)
def test_what_it_cannot_come_after(text: str, message: str) -> None:
    (finding,) = lint(HEAD + text, actions=None).errors
    assert message in finding.message


def test_it_is_of_the_whole_definition() -> None:
    text = "name: D\nimage: busybox\nuses:\n  main:\n    - run: echo\n      after: Build\n"
    (finding,) = lint(text, actions=None).findings
    assert "'after'" in finding.message
    assert "the whole definition" in f"{finding.message} {finding.hint}"
