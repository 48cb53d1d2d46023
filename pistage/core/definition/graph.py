"""Graph: what needs what, checked to be free of circles, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pistage.core.definition.findings import Page
from pistage.core.definition.nodes import ScalarNode, shortened
from pistage.core.definition.pistages import GroupSource
from pistage.core.plan import Task

Needs = Mapping[str, tuple[str, ...]]


def needs_of(groups: Iterable[GroupSource], page: Page) -> Needs:
    """What each group needs; unknown names and circles are errors on the page, and left out."""
    return checked_needs({group.name: group.needs for group in groups}, page, "group")


def checked_needs(asked: Mapping[str, Sequence[ScalarNode]], page: Page, what: str) -> Needs:
    """The names that each name needs, once each; the result is free of unknown ones and circles, which are errors."""
    needs: dict[str, tuple[str, ...]] = {}
    for name, nodes in asked.items():
        known = []
        for node in nodes:
            if node.text in asked:
                known.append(node.text)
            else:
                names = ", ".join(shortened(other, 40) for other in list(asked)[:20] if other != name) or "none besides"
                page.error(node, "unknown-need", f"there is no {what} '{shortened(node.text)}'", f"there are {names}")
        needs[name] = tuple(dict.fromkeys(known))
    circle = _circle(needs)
    if not circle:
        return needs
    at = next(node for node in asked[circle[0]] if node.text == circle[1])
    chain = " -> ".join(shortened(name, 40) for name in circle)
    page.error(at, "needs-cycle", f"{what}s need each other in a circle: {chain}", "break the circle")
    return dict.fromkeys(needs, ())


def _circle(needs: Needs) -> list[str] | None:
    """Names of a circle, its first name repeated at the end; walks with a stack of its own."""
    done: set[str] = set()
    for start in needs:
        path: dict[str, list[str]] = {}
        pending: list[tuple[str, bool]] = [(start, False)]
        while pending:
            name, is_left = pending.pop()
            if is_left:
                path.popitem()
                done.add(name)
            elif name in path:
                names = list(path)
                return [*names[names.index(name) :], name]
            elif name not in done:
                path[name] = []
                pending.append((name, True))
                pending += [(need, False) for need in reversed(needs[name])]
    return None


def layers_of(needs: Needs) -> list[list[str]]:
    """The names in layers: each layer needs only names of earlier ones."""
    level: dict[str, int] = {}
    waiting = dict(needs)
    while waiting:
        ready = [name for name, wanted in waiting.items() if all(need in level for need in wanted)]
        assert ready, "needs with a circle were not refused"
        for name in ready:
            level[name] = max((level[need] + 1 for need in needs[name]), default=0)
        waiting = {name: wanted for name, wanted in waiting.items() if name not in level}
    return [[name for name in needs if level[name] == depth] for depth in range(max(level.values(), default=-1) + 1)]


def upstream_of(name: str, needs: Needs) -> frozenset[str]:
    """Everything that `name` needs, and what that needs, to the end."""
    found: set[str] = set()
    pending = list(needs[name])
    while pending:
        each = pending.pop()
        if each not in found:
            found.add(each)
            pending += needs[each]
    return frozenset(found)


def gangs_of(tasks: Sequence[Task]) -> dict[str, str]:
    """Task name -> gang, for tasks that share a network or a volume with another and so must share an agent (J6)."""
    owner = {task.name: task.name for task in tasks}

    def root(name: str) -> str:
        while owner[name] != name:
            owner[name] = owner[owner[name]]
            name = owner[name]
        return name

    first: dict[tuple[str, str], str] = {}
    for task in tasks:
        for shared in _shared_of(task):
            owner[root(task.name)] = root(first.setdefault(shared, task.name))
    members: dict[str, list[str]] = {}
    for task in tasks:
        members.setdefault(root(task.name), []).append(task.name)
    together = [names for names in members.values() if len(names) > 1]
    return {name: f"g{number}" for number, names in enumerate(together, 1) for name in names}


def _shared_of(task: Task) -> set[tuple[str, str]]:
    networks = {("network", joined.network) for context in task.contexts for joined in context.networks}
    volumes = {
        ("volume", mount.source) for context in task.contexts for mount in context.mounts if mount.kind == "volume"
    }
    return networks | volumes
