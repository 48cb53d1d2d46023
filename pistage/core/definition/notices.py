"""Notices: `notify` of a definition -> who is told of the end of its runs."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from pistage.core import limits
from pistage.core.definition.fields import check_keys, choice_field, name_field, text_field, wrong_kind
from pistage.core.definition.findings import Page
from pistage.core.definition.messages import problem_of_body
from pistage.core.definition.nodes import Kind, ListNode, MapNode, Node, ScalarNode
from pistage.core.notices import End, Notify, problem_of_url

_KEYS = {"to", "url", "on", "body"}
#: What a receiver that was set has, and a document must not: who sees a run sees its document.
_OF_RECEIVERS = ("secret", "headers")
_EXPECTED = "the name of a receiver, a URL, a mapping with 'to' or 'url', or a list of them"


class _When(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    ALWAYS = "always"


def notify_field(page: Page, node: Node | None) -> tuple[Notify, ...]:
    """Who is told, in the order of the document; nothing in it is a template of the definition's."""
    if node is None:
        return ()
    items = node.items if isinstance(node, ListNode) else (node,)
    if len(items) > limits.NOTICES_OF_DEFINITION_MAX:
        page.error(
            node, "too-many-notices",
            f"there are {len(items)} notices; a definition has at most {limits.NOTICES_OF_DEFINITION_MAX}",
            "let one receiver pass them on",
        )  # fmt: skip
        return ()
    found: dict[str, Notify] = {}
    for item in items:
        notify = _notify(page, item)
        if notify is None:
            continue
        if (notify.to or notify.url) in found:
            page.error(item, "same-receiver", "it is told twice", "write all that it is told of 'on' in one place")
        found[notify.to or notify.url] = notify
    return tuple(found.values())


def _notify(page: Page, item: Node) -> Notify | None:
    if isinstance(item, ScalarNode) and item.kind is Kind.TEXT:
        if "://" in item.text:
            url = _url(page, item)
            return None if url is None else Notify(url=url)
        name = name_field(page, item, item, "notify")
        return None if name is None else Notify(to=name)
    if not isinstance(item, MapNode):
        wrong_kind(page, item, "notify", _EXPECTED, "write for example 'notify: ops', after pistage notice add ops URL")
        return None
    for key in _OF_RECEIVERS:
        if key in item.entries:
            page.error(
                item.keys[key], "not-in-a-document", f"'{key}' is for nobody to read, and a document is read by many",
                "set a receiver with pistage notice add, and write its name: 'to: NAME'",
            )  # fmt: skip
    rest = {key: at for key, at in item.keys.items() if key not in _OF_RECEIVERS}
    check_keys(page, replace(item, keys=rest), _KEYS, "notify")
    to, place = item.get("to"), item.get("url")
    if (to is None) == (place is None):
        page.error(item, "no-receiver", "expected one of 'to' and 'url'", "name a receiver, or write a URL")
        return None
    name = "" if to is None else name_field(page, to, item, "notify.to")
    url = "" if place is None else _url(page, place)
    on, body = _on(page, item.get("on")), _body(page, item.get("body"))
    return None if name is None or url is None else Notify(to=name, url=url, on=on, body=body)


def _url(page: Page, node: Node) -> str | None:
    url = text_field(page, node, "notify.url")
    if url is not None and (problem := problem_of_url(url)) is not None:
        page.error(node, "bad-url", f"the URL of a notice {problem}", "write for example https://example.org/hooks/ci")
        return None
    return url


def _on(page: Page, node: Node | None) -> tuple[End, ...]:
    items = node.items if isinstance(node, ListNode) else () if node is None else (node,)
    words = [choice_field(page, item, "notify.on", _When) for item in items]
    if isinstance(node, ListNode) and not items:
        page.error(node, "empty", "notify.on is empty", "write what it is told of, or take 'on' out")
    if _When.ALWAYS in words:
        return tuple(End)
    return tuple(end for end in End if _When(end.value) in words)


def _body(page: Page, node: Node | None) -> str:
    body = text_field(page, node, "notify.body")
    if body is not None and (problem := problem_of_body(body)) is not None:
        page.error(node or ScalarNode(text="", kind=Kind.NULL), "bad-body", f"notify.body {problem}",
                   "it is about 'run' and 'tasks': {{ run.name | tojson }}")  # fmt: skip
    return body or ""
