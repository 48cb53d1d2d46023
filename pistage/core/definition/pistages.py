"""Pistages: the shape of a document with `run` or `uses`, as groups of steps; nothing is looked up or rendered here."""

from __future__ import annotations

from dataclasses import dataclass

from pistage.core.definition.fields import (
    boolean_field,
    came,
    check_keys,
    list_field,
    map_field,
    name_field,
    problem_of_name,
    text_field,
    texts_field,
)
from pistage.core.definition.findings import Page
from pistage.core.definition.inputs import Inputs, inputs_field
from pistage.core.definition.nodes import ListNode, MapNode, Node, Place, ScalarNode, below, is_null
from pistage.core.definition.scripts import SCRIPT, check_script

_SHARED = frozenset(
    {"env", "workdir", "user", "timeout", "retry", "resources", "agent", "volumes", "networks", "services"}
)
#: Keys that a definition and a group take, and but for the last two a step.
SETTINGS = _SHARED | {"on_partition", "queue_timeout"}
#: Of the root alone; inside an action that a `dep` uses nobody asks them.
_PLAN = {"priority", "queue", "concurrency", "schedule", "after", "notify"}
_STEP = (
    _SHARED
    | {"name", "description", "dep", "image", "run", "command", "entrypoint", "with", "on"}
    | {"async", "from", "when"}
    | SCRIPT
)
_GROUP = SETTINGS | {"steps", "description", "image", "needs", "when"}
_DEFINITION = SETTINGS | _PLAN | {"name", "description", "uses", "image", "inputs", "with", "async", "when"}
_LEAF = _DEFINITION - {"uses"} | {"dep", "run", "command", "entrypoint", "on"} | SCRIPT
_NO_SETTINGS = MapNode(entries={}, keys={})


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSource:
    """A step as the document has it."""

    node: MapNode
    name: str | None
    dep: ScalarNode | None
    with_: MapNode | None
    on: MapNode | None
    is_async: bool
    settings: MapNode


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSource:
    """A group as the document has it."""

    name: str
    node: Place
    steps: tuple[StepSource, ...]
    needs: tuple[ScalarNode, ...] = ()
    when: Node | None = None
    image: Node | None = None
    settings: MapNode = _NO_SETTINGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A Pistages document: an action or a pipeline, which is the same (P1)."""

    name: str
    node: MapNode
    page: Page
    groups: tuple[GroupSource, ...]
    inputs: Inputs | None
    with_: MapNode | None
    is_async: bool
    image: Node | None
    when: Node | None
    settings: MapNode
    node_count: int


def parse_pistages(root: MapNode, page: Page) -> Definition | None:
    """The definition in a document; None after an error that leaves nothing to plan."""
    name = name_field(page, root.entries.get("name"), root)
    has_uses = root.get("uses") is not None or ("uses" in root.entries and not root.entries.keys() & {"run", "script"})
    check_keys(page, root, _DEFINITION if has_uses else _LEAF, "a definition")
    is_async = boolean_field(page, root.get("async"), "async")
    with_ = map_field(page, root.get("with"), "with")
    inputs = inputs_field(page, root.get("inputs"), with_)
    groups = _groups(root, page) if has_uses else _leaf(root, page)
    if name is None or not groups:
        return None
    return Definition(
        name=name,
        node=root,
        page=page,
        groups=groups,
        inputs=inputs,
        with_=with_,
        is_async=is_async,
        image=root.get("image") if has_uses else None,
        when=root.get("when"),
        settings=_settings(root),
        node_count=sum(1 for _ in below(root)),
    )


def _leaf(root: MapNode, page: Page) -> tuple[GroupSource, ...]:
    """P1: a document without `uses` is one group `main` with one step; its other keys are the definition's."""
    body = root.without("inputs", "with", "async", "when", "name", *SETTINGS, *_PLAN)
    step = _step(body, page)
    return () if step is None else (GroupSource(name="main", node=root, steps=(step,)),)


def _groups(root: MapNode, page: Page) -> tuple[GroupSource, ...]:
    node = root.entries["uses"]
    if is_null(node):
        page.error(root.keys["uses"], "empty", "uses is empty", "give it a group: 'main:' with a list of steps")
        return ()
    uses = map_field(page, node, "uses", "a mapping of groups")
    if uses is None:
        return ()
    if not uses.entries:
        page.error(uses, "empty", "uses is empty", "give it a group: 'main:' with a list of steps")
    groups = [_group(name, uses, page) for name in uses.entries]
    return tuple(group for group in groups if group is not None)


def _group(name: str, uses: MapNode, page: Page) -> GroupSource | None:
    if problem := problem_of_name(name):
        page.error(
            uses.keys[name], "bad-name", f"the name of a group {problem}", "a name is one line of printable characters"
        )
    node = uses.entries[name]
    match node:
        case ListNode():
            return _group_of(name, node, node, page, _NO_SETTINGS)
        case MapNode():
            check_keys(page, node, _GROUP, "a group")
            if node.get("steps") is None:
                page.error(
                    uses.keys[name], "no-steps", f"the group '{name}' has no 'steps'", "give it 'steps:' with a list"
                )
                return None
            return _group_of(name, node.entries["steps"], node, page, node)
        case _:
            page.error(
                uses.keys[name] if node.text == "" else node,
                "empty" if node.text == "" else "wrong-kind",
                f"the group '{name}' is empty"
                if node.text == ""
                else f"a group must be a list of steps or a mapping with 'steps', not {came(node)}",
                "give it a list of steps: '- run: …' or '- dep: …'",
            )
            return None


def _group_of(name: str, steps: Node, node: Place, page: Page, keys: MapNode) -> GroupSource | None:
    items = list_field(page, steps, f"the group '{name}'", "a list of steps")
    if not items:
        if isinstance(steps, ListNode):
            page.error(steps, "empty", f"the group '{name}' is empty", "give it a step: '- run: …' or '- dep: …'")
        return None
    parsed = [_listed_step(item, page) for item in items]
    needs = [need for need in _needs(keys, page) if text_field(page, need, "needs") is not None]
    return GroupSource(
        name=name,
        node=node,
        steps=tuple(step for step in parsed if step is not None),
        needs=tuple(need for need in needs if isinstance(need, ScalarNode)),
        when=keys.get("when"),
        image=keys.get("image"),
        settings=_settings(keys),
    )


def _needs(keys: MapNode, page: Page) -> tuple[Node, ...]:
    node = keys.get("needs")
    return (node,) if isinstance(node, ScalarNode) else list_field(page, node, "needs", "a list of groups")


def _listed_step(node: Node, page: Page) -> StepSource | None:
    if not isinstance(node, MapNode):
        hint = f"write '- run: {node.text}'" if isinstance(node, ScalarNode) and node.text else None
        page.error(node, "wrong-kind", f"a step must be a mapping with 'run' or 'dep', not {came(node)}", hint)
        return None
    check_keys(page, node, _STEP, "a step")
    return _step(node, page)


def _step(node: MapNode, page: Page) -> StepSource | None:
    """One step; what its texts hold is checked when they are rendered, that they are texts is checked here."""
    dep = node.get("dep")
    name = name_field(page, node.get("name"), node) if node.get("name") is not None else None
    is_sound = all([_check_texts(node, page), _check_what_runs(node, page)])
    if dep is not None and text_field(page, dep, "dep") is None:
        return None
    step = StepSource(
        node=node,
        name=name,
        dep=dep if isinstance(dep, ScalarNode) else None,
        with_=map_field(page, node.get("with"), "with"),
        on=map_field(page, node.get("on"), "on"),
        is_async=boolean_field(page, node.get("async"), "async"),
        settings=_settings(node),
    )
    return step if is_sound else None


def _check_texts(node: MapNode, page: Page) -> bool:
    image, run = node.get("image"), node.get("run")
    is_image_fine = image is None or text_field(page, image, "image") is not None
    is_run_fine = run is None or texts_field(page, run, "run") is not None
    return is_image_fine and is_run_fine


def _check_what_runs(node: MapNode, page: Page) -> bool:
    present = [key for key in ("dep", "run", "script", "command", "entrypoint") if node.get(key) is not None]
    if not present:
        page.error(
            node, "no-run", "a step needs 'run' or 'dep'", "write 'run: …' with a command, or 'dep: …' with an action"
        )
        return False
    if "dep" in present and len(present) > 1:
        others = " and ".join(f"'{key}'" for key in present[1:])
        page.warn(
            node.keys[present[1]], "dep-wins", f"a step with 'dep' does not run its {others}", f"take {others} out"
        )
    elif "run" in present and len(present) > 1:
        page.error(
            node.keys[present[1]],
            "run-and-command",
            f"a step has both 'run' and '{present[1]}'",
            "'run' is a shell script; for an image without a shell keep 'command' alone",
        )
        return False
    elif "script" in present and len(present) > 1:
        page.error(
            node.keys[present[1]],
            "script-and-command",
            f"a step has both 'script' and '{present[1]}'",
            "'script' is code for its language's interpreter; take one of them out",
        )
        return False
    return check_script(node, page)


def _settings(node: MapNode) -> MapNode:
    return node.without(*(node.entries.keys() - SETTINGS))
