"""Storage and networks: volumes and networks that a document declares, and the places where steps use them (J6)."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from pistage.core.definition.fields import boolean_field, check_keys, list_field, map_field, text_field, wrong_kind
from pistage.core.definition.findings import Page
from pistage.core.definition.nodes import ListNode, MapNode, Node, Place, ScalarNode, is_null, shortened
from pistage.core.plan import Attachment, Mount, Network, Volume

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_NAME_RULE = "letters, digits, '_', '.' and '-', at most 100 of them"
_MOUNT = "name:/path, /host/path:/path, each with an optional :ro"
_PATH_CHARS_MAX = 4096


def declared_volumes(page: Page, node: Node | None) -> dict[str, Volume]:
    """The volumes that a definition declares: a list, or a mapping by name; strings that use one are passed over."""
    declared = _declared(page, node, "volumes")
    return {
        name: Volume(name=name, driver=driver or "local", is_external=is_external)
        for name, (driver, is_external) in declared.items()
    }


def declared_networks(page: Page, node: Node | None) -> dict[str, Network]:
    """The networks that a definition declares: a list, or a mapping by name."""
    declared = _declared(page, node, "networks")
    return {
        name: Network(name=name, driver=driver or "bridge", is_external=is_external)
        for name, (driver, is_external) in declared.items()
    }


def _declared(page: Page, node: Node | None, label: str) -> dict[str, tuple[str | None, bool]]:
    """Name -> driver and whether it is external."""
    found: dict[str, tuple[str | None, bool]] = {}
    for name, at, item in _declarations(page, node, label):
        if not is_name(page, at, name, label):
            continue
        if name in found:
            page.error(at, "repeated-name", f"'{shortened(name)}' is declared twice in {label}", "keep one of them")
        found[name] = _declaration(page, item, label)
    return found


def _declarations(page: Page, node: Node | None, label: str) -> Iterator[tuple[str, Place, Node | None]]:
    """The name, its place, and what is said of it."""
    if isinstance(node, MapNode):
        yield from ((name, node.keys[name], item) for name, item in node.entries.items())
        return
    for item in list_field(page, node, label, f"a list or a mapping of {label}"):
        if isinstance(item, ScalarNode):
            text = text_field(page, item, f"an item of {label}")
            if text is not None and ":" not in text:
                yield text, item, None
        elif isinstance(item, MapNode) and not _is_use(item):
            if item.get("name") is None:
                page.error(item, "no-name", f"an item of {label} has no 'name'", "give it 'name: …'")
            name = text_field(page, item.get("name"), "name")
            if name is not None:
                yield name, item, item
        elif isinstance(item, ListNode):
            wrong_kind(page, item, f"an item of {label}", "a name or a mapping with 'name'", "write '- name: …'")


def _declaration(page: Page, node: Node | None, label: str) -> tuple[str | None, bool]:
    if node is None or is_null(node):
        return None, False
    mapping = map_field(page, node, f"an item of {label}", "a mapping with 'driver' or 'external'")
    if mapping is None:
        return None, False
    check_keys(page, mapping, {"name", "driver", "external"}, f"an item of {label}")
    return text_field(page, mapping.get("driver"), "driver"), boolean_field(page, mapping.get("external"), "external")


def _is_use(item: MapNode) -> bool:
    return item.get("target") is not None or item.get("aliases") is not None


def is_name(page: Page, at: Place, name: str, label: str) -> bool:
    """Whether `name` can be a volume's or a network's; the page says why not."""
    if _NAME.fullmatch(name):
        return True
    page.error(at, "bad-name", f"'{shortened(name)}' cannot be a name in {label}", f"a name has {_NAME_RULE}")
    return False


def mounts_field(page: Page, node: Node | None, *, declares: bool = False) -> tuple[Mount, ...]:
    """The volumes and host directories that a step sees; with `declares`, what only declares one is passed over."""
    if declares and isinstance(node, MapNode):
        return ()
    found: dict[str, Mount] = {}
    for item in list_field(page, node, "volumes", f"a list of {_MOUNT}"):
        if declares and (_is_declaration(item) or (isinstance(item, ScalarNode) and ":" not in item.text)):
            continue
        mount = _long_mount(page, item) if isinstance(item, MapNode) else _short_mount(page, item)
        if mount is None:
            continue
        if mount.target in found:
            page.error(item, "repeated-target", f"two volumes have the target {mount.target}", "keep one of them")
        found[mount.target] = mount
    return tuple(found.values())


def _is_declaration(item: Node) -> bool:
    return isinstance(item, MapNode) and not _is_use(item)


def _short_mount(page: Page, item: Node) -> Mount | None:
    text = text_field(page, item, "an item of volumes")
    if text is None:
        return None
    source, _, rest = text.partition(":")
    target, colon, mode = rest.partition(":")
    if not source or not target or mode not in ("ro", "rw", "") or (colon and not mode):
        page.error(
            item, "bad-volume", f"a volume must be {_MOUNT}, not '{shortened(text)}'", "write for example cache:/cache"
        )
        return None
    return _mount(page, item, source, target, mode == "ro")


def _long_mount(page: Page, item: MapNode) -> Mount | None:
    check_keys(page, item, {"name", "source", "target", "read_only"}, "a volume")
    source_node = item.get("source") or item.get("name")
    source, target = text_field(page, source_node, "name"), text_field(page, item.get("target"), "target")
    if source_node is None or item.get("target") is None:
        page.error(item, "bad-volume", "a volume needs 'name' and 'target'", f"or write it as {_MOUNT}")
    if source is None or target is None:
        return None
    return _mount(page, item, source, target, boolean_field(page, item.get("read_only"), "read_only"))


def _mount(page: Page, at: Place, source: str, target: str, is_read_only: bool) -> Mount | None:
    is_bind = source.startswith("/")
    if not is_bind and not _NAME.fullmatch(source):
        page.error(
            at,
            "bad-volume",
            f"'{shortened(source)}' is neither the name of a volume nor an absolute path",
            f"a name has {_NAME_RULE}; a path begins with '/'",
        )
        return None
    paths = [source, target] if is_bind else [target]
    if [path for path in paths if not is_path(page, at, path, "a volume's path")]:
        return None
    if posixpath.normpath(target) == "/":
        page.error(at, "bad-path", "a volume's target cannot be '/'", "mount it at a directory below")
        return None
    return Mount(
        kind="bind" if is_bind else "volume",
        source=posixpath.normpath(source) if is_bind else source,
        target=posixpath.normpath(target),
        is_read_only=is_read_only,
    )


def is_path(page: Page, at: Place, path: str, label: str) -> bool:
    """Whether `path` is absolute, without `..` and of sane characters; the page says why not."""
    if not path.startswith("/") or path.startswith("//"):
        page.error(at, "bad-path", f"{label} must be absolute, not '{shortened(path)}'", "begin it with one '/'")
    elif ".." in path.split("/"):
        page.error(at, "bad-path", f"{label} cannot hold '..': '{shortened(path)}'", "write the path without detours")
    elif len(path) > _PATH_CHARS_MAX or not path.isprintable():
        page.error(
            at, "bad-path", f"{label} is too long or holds a character that cannot be shown", "write a plain path"
        )
    else:
        return True
    return False


def attachments_field(page: Page, node: Node | None, *, declares: bool = False) -> tuple[Attachment, ...]:
    """The networks that a step joins: names, or mappings of name and aliases."""
    if declares and isinstance(node, MapNode):
        return ()
    found: dict[str, Attachment] = {}
    for item in list_field(page, node, "networks", "a list of networks"):
        if declares and _is_declaration(item):
            continue
        joined = _attachment(page, item)
        if joined is not None:
            found[joined.network] = joined
    return tuple(found.values())


def _attachment(page: Page, item: Node) -> Attachment | None:
    if isinstance(item, ListNode):
        page.error(
            item, "wrong-kind", "an item of networks must be a name or a mapping, not a list", "write '- name: …'"
        )
        return None
    if isinstance(item, ScalarNode):
        name = text_field(page, item, "an item of networks")
        return Attachment(network=name) if name is not None and is_name(page, item, name, "networks") else None
    check_keys(page, item, {"name", "aliases"}, "a step's network")
    if item.get("name") is None:
        page.error(item, "no-name", "an item of networks has no 'name'", "give it 'name: …'")
    name = text_field(page, item.get("name"), "name")
    aliases = [text_field(page, alias, "an alias") for alias in list_field(page, item.get("aliases"), "aliases")]
    if name is None or not is_name(page, item, name, "networks"):
        return None
    good = [alias for alias in aliases if alias is not None and is_name(page, item, alias, "aliases")]
    return Attachment(network=name, aliases=tuple(good))
