"""Scripts: the keys of a step that runs code (`script`), and a script alone as the definition that it is.

Nothing of a script is a template: its code, its arguments and what it reads may hold any braces. Parameters reach it
as PISTAGE_PARAM_<NAME>.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any

from pistage.core import languages, limits
from pistage.core.definition.fields import check_keys, list_field, problem_of_name, text_field, word_field, wrong_kind
from pistage.core.definition.findings import Page
from pistage.core.definition.nodes import Kind, MapNode, Node, ScalarNode, shortened
from pistage.core.definition.templates import is_template
from pistage.core.languages import Installer, Language
from pistage.core.plan import Program

_BESIDE = frozenset({"args", "file", "language", "requirements", "stdin"})
#: What a step that runs code has beside the keys of all steps.
SCRIPT = frozenset({"script"}) | _BESIDE
_NAME = "script"

#: One package, as its installer takes it, and nothing that the installer would take for an option or a file.
_REQUIREMENTS: Mapping[Installer, re.Pattern[str]] = {
    Installer.PIP: re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:\[[A-Za-z0-9._, -]*\])?(?:\s*[=<>!~][^@/\\]*)?"),
    Installer.NPM: re.compile(r"(?:@[a-z0-9~-][a-z0-9._~-]*/)?[a-z0-9~-][a-z0-9._~-]*(?:@[A-Za-z0-9.^~<>=*|+ -]+)?"),
}
_SAMPLES = {Installer.PIP: "requests==2.32.3", Installer.NPM: "zod@3.23.8"}


def check_script(node: MapNode, page: Page) -> bool:
    """Whether the keys of a script stand where they mean something."""
    if node.get("script") is not None:
        return True
    stray = [key for key in node.keys if key in _BESIDE and node.get(key) is not None]
    for key in stray:
        page.error(node.keys[key], "no-script", f"'{key}' means nothing without 'script'", "add 'script: …' with code")
    return not stray


def program_of(node: MapNode, page: Page, known: Mapping[str, Language]) -> Program | None:
    """What the keys of a step with `script` say; None after an error. A language not among the `known` is warned of."""
    text = text_field(page, node.get("script"), "script")
    if text is None:
        return None
    if len(text.encode()) > limits.SCRIPT_BYTES_MAX:
        _too_large(page, node.entries["script"], "script", len(text.encode()), limits.SCRIPT_BYTES_MAX)
    file = _file(page, node)
    name = _language(page, node, text, file, known)
    args = _args(page, node.get("args"))
    stdin = _stdin(page, node.get("stdin"))
    if name is None:
        return None
    language = known.get(name, Language(command=()))
    return Program(
        language=name,
        text=text,
        ending=languages.ending_of(file or "") or next(iter(language.endings), ""),
        command=language.command,
        args=args,
        stdin=stdin,
        requirements=_requirements(page, node.get("requirements"), name, language.installer),
        installer=language.installer,
    )


def title_of(node: MapNode) -> str | None:
    """What a script without a name is called: its file."""
    file = node.get("file")
    return shortened(file.text) if isinstance(file, ScalarNode) else None


def _file(page: Page, node: MapNode) -> str | None:
    given = node.get("file")
    file = text_field(page, given, "file")
    if file is not None and given is not None and (problem := problem_of_name(file)):
        page.error(given, "bad-name", f"file {problem}", "a file's name is one line of printable characters")
        return None
    return file


def _language(page: Page, node: MapNode, text: str, file: str | None, known: Mapping[str, Language]) -> str | None:
    given = node.get("language")
    if given is None:
        name = languages.detected(text, file, known)
        if name is None:
            page.error(
                node.keys["script"], "no-language", "nothing says which language the script is in",
                f"write for example 'language: {next(iter(known), 'python')}'; known are {', '.join(known)}",
            )  # fmt: skip
        return name
    name = text_field(page, given, "language")
    if name is None or name in known:
        return name
    if not languages.is_name(name):
        page.error(given, "bad-language", f"'{shortened(name)}' cannot be the name of a language", "write it in small")
        return None
    near = get_close_matches(name, list(known), n=1)
    page.warn(
        given, "unknown-language",
        f"no image is known for the language '{name}': only agents that have an interpreter of their own can run it",
        f"did you mean '{near[0]}'?" if near else "a master's `languages` names images",
    )  # fmt: skip
    return name


def _args(page: Page, node: Node | None) -> tuple[str, ...]:
    words = [word_field(page, item, "a word of args") for item in list_field(page, node, "args", "a list of words")]
    sizes = [len(word.encode()) for word in words if word is not None]
    if node is not None and sizes and max(sizes) > limits.SCRIPT_ARGUMENT_BYTES_MAX:
        _too_large(page, node, "a word of args", max(sizes), limits.SCRIPT_ARGUMENT_BYTES_MAX)
    elif node is not None and sum(sizes) > limits.SCRIPT_ARGUMENTS_BYTES_MAX:
        _too_large(page, node, "args", sum(sizes), limits.SCRIPT_ARGUMENTS_BYTES_MAX)
    return tuple(word for word in words if word is not None)


def _stdin(page: Page, node: Node | None) -> str:
    """A text, or bytes as {base64: …}; in base64."""
    if node is None:
        return ""
    if isinstance(node, MapNode):
        check_keys(page, node, {"base64"}, "stdin")
        given = node.get("base64")
        text = text_field(page, given, "stdin.base64")
        try:
            data = base64.b64decode((text or "").encode(), validate=True)
        except (binascii.Error, ValueError):
            page.error(given or node, "bad-base64", "stdin.base64 is not base64", "or write 'stdin: …' with a text")
            return ""
    elif isinstance(node, ScalarNode) and node.kind is Kind.TEXT:
        data = node.text.encode()
    else:
        wrong_kind(page, node, "stdin", "a text, or {base64: …}", "quote it")
        return ""
    if len(data) > limits.SCRIPT_BYTES_MAX:
        _too_large(page, node, "stdin", len(data), limits.SCRIPT_BYTES_MAX)
    return base64.b64encode(data).decode()


def _requirements(page: Page, node: Node | None, name: str, installer: Installer | None) -> tuple[str, ...]:
    items = list_field(page, node, "requirements", "a list of packages")
    if node is None or not items:
        return ()
    if installer is None:
        page.error(node, "no-installer", f"nothing installs requirements of '{name}'", "use an image that has them")
        return ()
    if len(items) > limits.SCRIPT_REQUIREMENTS_MAX:
        page.error(
            node, "too-large", f"there are more than {limits.SCRIPT_REQUIREMENTS_MAX} requirements", "use an image"
        )
        return ()
    found = []
    for item in items:
        text = text_field(page, item, "a requirement")
        if text is None:
            continue
        if len(text) > limits.NAME_CHARS_MAX or not text.isprintable() or not _REQUIREMENTS[installer].fullmatch(text):
            page.error(
                item, "bad-requirement", f"'{shortened(text)}' is not a package as {installer} takes it",
                f"write for example {_SAMPLES[installer]}; options, files and addresses are not taken",
            )  # fmt: skip
            continue
        found.append(text)
    return tuple(found)


def _too_large(page: Page, node: Node, label: str, size: int, most: int) -> None:
    page.error(node, "too-large", f"{label} has {size:,} bytes; at most {most:,} are taken", "keep data in files")


# --- a script alone ----------------------------------------------------------------------------------------


def script_document(script: str, keys: Mapping[str, Any]) -> str:
    """The definition that a script alone is, with the other `keys` of one. What `env` holds is taken as it is, too.

    It is named after its file, and tried once: who runs a command twice because it failed has asked for that.
    """
    given = {key: value for key, value in keys.items() if value not in (None, [], {})}
    env = given.pop("env", None)
    if isinstance(env, Mapping):
        given["env"] = {name: literal(value) if isinstance(value, str) else value for name, value in env.items()}
    name = given.pop("name", None) or _name_of(given.get("file"))
    document = {"name": name, "script": script, "retry": 0, **given}
    text = json.dumps(document, ensure_ascii=False, indent=2)
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _name_of(file: object) -> str:
    name = PurePosixPath(file).name if isinstance(file, str) else ""
    return name if name and problem_of_name(name) is None else _NAME


#: Characters that a document may hold as an escape only.
_UNSEEN = re.compile("[\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")


def literal(text: str) -> str:
    """A text that renders as `text`."""
    return re.sub(r"\{(?=[{%])", "{{ '{' }}", text) if is_template(text) else text
