"""After: `after` of a definition -> the runs whose end it comes after."""

from __future__ import annotations

from pistage.core import limits
from pistage.core.definition.fields import check_keys, choice_field, name_field, wrong_kind
from pistage.core.definition.findings import Page
from pistage.core.definition.nodes import Kind, ListNode, MapNode, Node, ScalarNode
from pistage.core.triggers.settings import After, Ending

_KEYS = {"pipeline", "state"}
_EXPECTED = "a name, a mapping with 'pipeline', or a list of them"


def afters_field(page: Page, node: Node | None, name: str | None) -> tuple[After, ...]:
    """Each once, in its order, for the definition called `name`."""
    if node is None:
        return ()
    items = node.items if isinstance(node, ListNode) else (node,)
    if len(items) > limits.AFTERS_OF_DEFINITION_MAX:
        page.error(
            node, "too-many-afters",
            f"'after' has {len(items)} items; a definition has at most {limits.AFTERS_OF_DEFINITION_MAX}",
            "take it apart",
        )  # fmt: skip
        return ()
    found = [_after(page, item, name) for item in items]
    return tuple(dict.fromkeys(one for one in found if one is not None))


def _after(page: Page, node: Node, name: str | None) -> After | None:
    after = _written(page, node)
    if after is not None and after.pipeline == name:
        page.error(
            node, "after-itself", f"'{name}' comes after itself: each of its runs would make the next, without end",
            "name another definition; for a run by time, use 'schedule'",
        )  # fmt: skip
    return after


def _written(page: Page, node: Node) -> After | None:
    match node:
        case MapNode():
            check_keys(page, node, _KEYS, "after")
            pipeline = name_field(page, node.get("pipeline"), node, "after.pipeline")
            state = choice_field(page, node.get("state"), "after.state", Ending) or Ending.SUCCEEDED
            return None if pipeline is None else After(pipeline=pipeline, state=state)
        case ScalarNode(kind=Kind.TEXT):
            pipeline = name_field(page, node, node, "after")
            return None if pipeline is None else After(pipeline=pipeline)
        case _:
            wrong_kind(page, node, "after", _EXPECTED, "write for example after: Build")
            return None
