"""Documents for the tests: the seed's own, and a library of actions that is a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from pistage.core.definition import Actions, ActionText, Planned, make_plan
from pistage.core.plan import Plan, Step, Task
from pistage.errors import Code, PistageError

SEEDS = Path(__file__).parents[2] / "fixtures" / "seeds"
SLEEP = "name: Sleep\nimage: alpine\nasync: true\nrun: sleep {{ .duration }}\nwith: {duration: 16}\n"


def seed(name: str) -> str:
    """A block of the seed documents, byte for byte."""
    file = next(SEEDS.glob(f"{name}.*"))
    return file.read_bytes().decode()


def seed_actions() -> dict[str, str]:
    """What the seed registers before it goes on."""
    return {
        "Clone Repo": seed("clone-repo"),
        "Clone Pistages": seed("clone-pistages"),
        "Clone Repo, Pistages if omitted": seed("clone-repo-or-pistages"),
        "Sleep": SLEEP,
    }


def library(texts: Mapping[str, str]) -> Actions:
    """A look-up among `texts`."""
    return lambda name: ActionText(name=name, text=texts[name], version=1) if name in texts else None


def planned(
    text: str | bytes,
    actions: Mapping[str, str] | None = None,
    parameters: Mapping[str, object] | None = None,
    start_node: str | None = None,
) -> Planned:
    return make_plan(text, actions=library(actions or {}), parameters=parameters or {}, start_node=start_node)


def plan_of(
    text: str | bytes, actions: Mapping[str, str] | None = None, parameters: Mapping[str, object] | None = None
) -> Plan:
    return planned(text, actions, parameters).plan


def only_task(text: str, actions: Mapping[str, str] | None = None, **parameters: object) -> Task:
    (task,) = plan_of(text, actions, parameters).tasks
    return task


def only_step(text: str, actions: Mapping[str, str] | None = None, **parameters: object) -> Step:
    (step,) = only_task(text, actions, **parameters).steps()
    return step


def script_of(run: str, **parameters: object) -> str | None:
    """What `run` is rendered to."""
    indented = "".join(f"  {line}\n" for line in run.split("\n"))
    script = only_step(f"name: a\nimage: alpine\nrun: |-\n{indented}", None, **parameters).script
    return script


def refused(
    text: str | bytes, actions: Mapping[str, str] | None = None, parameters: Mapping[str, object] | None = None
) -> list[dict[str, object]]:
    """The findings with which `text` is refused."""
    with pytest.raises(PistageError) as caught:
        planned(text, actions, parameters)
    assert caught.value.code is Code.INVALID
    findings = caught.value.details["findings"]
    assert isinstance(findings, list)
    return findings


def runs(task: Task) -> list[tuple[str, str, str | None]]:
    """What a task runs, in order: the image, the context, the script."""
    return [(task.context_of(step).image, step.context, step.script) for step in task.steps()]
