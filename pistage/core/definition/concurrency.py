"""Concurrency: `concurrency` at the root of a definition -> how many runs of a group there may be at one time."""

from __future__ import annotations

from pistage.core import limits
from pistage.core.definition.fields import check_keys, choice_field, count_field, name_field, wrong_kind
from pistage.core.definition.findings import Page
from pistage.core.definition.nodes import Kind, MapNode, Node, ScalarNode
from pistage.core.plan import Concurrency, Overflow


def concurrency_field(page: Page, node: Node | None, name: str) -> Concurrency | None:
    """A group, a number of runs of the definition called `name`, or a mapping that says both and what overflows."""
    match node:
        case None:
            return None
        case MapNode():
            return _mapped(page, node, name)
        case ScalarNode(kind=Kind.TEXT):
            group = name_field(page, node, node, "concurrency")
            return None if group is None else Concurrency(group=group)
        case ScalarNode(kind=Kind.INTEGER):
            limit = _limit(page, node, "concurrency")
            return None if limit is None else Concurrency(group=name, limit=limit)
        case _:
            wrong_kind(
                page,
                node,
                "concurrency",
                "a group, a number of runs, or a mapping with 'group', 'limit' and 'overflow'",
                "write for example concurrency: 1",
            )
            return None


def _mapped(page: Page, node: MapNode, name: str) -> Concurrency:
    """What is wrong or not known yet is left as by default: a finding, or lint, says that there is no plan."""
    check_keys(page, node, {"group", "limit", "overflow"}, "concurrency")
    group = node.get("group")
    named = None if group is None else name_field(page, group, group, "concurrency.group")
    return Concurrency(
        group=named or name,
        limit=_limit(page, node.get("limit"), "concurrency.limit") or 1,
        overflow=choice_field(page, node.get("overflow"), "concurrency.overflow", Overflow) or Overflow.QUEUE,
    )


def _limit(page: Page, node: Node | None, label: str) -> int | None:
    return count_field(page, node, label, limits.CONCURRENCY_MAX, least=1)
