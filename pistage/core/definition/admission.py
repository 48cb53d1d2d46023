"""Admission: what is given to a run, or in a `with` beside a `dep`, held against the inputs of the definition.

Without `inputs` everything is let in as it is. What is wrong is told where it was given; the input it was meant for
then counts as one whose value is not known yet, so that nothing else is told because of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from pistage.core import limits
from pistage.core.definition.findings import Page
from pistage.core.definition.inputs import Fault, Input, Inputs, chars_in, check_inputs
from pistage.core.definition.nodes import ListNode, MapNode, Node, Path, Place, shortened
from pistage.core.definition.scope import Entry, Renderer, Scope
from pistage.core.definition.values import Fuel, TemplateError, Value, value_of

_GIVEN = Path() / "with"
_FUEL_PER_CHAR = 32  # of a text that a pattern goes through: most at 100 MB/s, the worst of them at 100 KB/s


def admitted_to_run(inputs: Inputs | None, given: Scope, page: Page, renderer: Renderer) -> Scope:
    """The scope of a document at the root: `given` as its inputs take it, and their defaults.

    Where the parameters are not known, as in lint, inputs that must be given are noted as needed.
    """
    if inputs is None:
        return given
    declared = inputs.entries

    def tell(fault: Fault) -> None:
        name = str(fault.at[0]) if fault.at else ""
        near = declared[name].place if name in declared else inputs.place
        page.error(Place(line=near.line, column=near.column, path=_path(_GIVEN, fault)), *_said(fault))

    needed = [] if renderer.is_strict else [one for one in declared.values() if one.is_required]
    renderer.needed.update(dict.fromkeys(one.name for one in needed))
    return _admitted(inputs, given, renderer.fuel, tell, origin="default of the input", later=needed)


def admitted_to_action(
    inputs: Inputs | None, given: Scope, renderer: Renderer, page: Page, *, name: str, with_: Node | None, dep: Node
) -> Scope:
    """The scope of the action `name`, used by `dep` on `page` with `given`, the values of `with_`."""
    if inputs is None:
        return given

    def tell(fault: Fault) -> None:
        at = _place_in(with_, fault) if with_ is not None else dep
        page.error(at, *_said(fault))

    whose = f" of the action '{shortened(name, 40)}'"
    return _admitted(inputs, given, renderer.fuel, tell, origin=f"default of the input{whose}", whose=whose)


def check_scheduled(inputs: Inputs | None, node: Node | None, page: Page, renderer: Renderer) -> None:
    """Hold the `with` of each schedule of a document against its inputs; more may be given when the schedule is set."""
    if inputs is None:
        return
    for item in node.items if isinstance(node, ListNode) else (node,):
        with_ = item.get("with") if isinstance(item, MapNode) else None
        if not isinstance(with_, MapNode):
            continue
        given = {name: value_of(value) for name, value in with_.entries.items()}

        def tell(fault: Fault, with_: MapNode = with_) -> None:
            page.error(_place_in(with_, fault), *_said(fault))

        _sound_values(inputs, given, set(inputs.entries), renderer.fuel, tell)


def _admitted(
    inputs: Inputs,
    given: Scope,
    fuel: Fuel,
    tell: Callable[[Fault], None],
    *,
    origin: str,
    whose: str = "",
    later: list[Input] | None = None,
) -> Scope:
    coming = {name for name, entry in given.entries.items() if entry.is_unknown} | {one.name for one in later or ()}
    known = {name: entry.value for name, entry in given.entries.items() if not entry.is_unknown}
    values = _sound_values(inputs, known, coming, fuel, tell, whose=whose)
    entries: dict[str, Entry] = {}
    for name, one in inputs.entries.items():
        was_given = given.entries.get(name)
        if name in values:
            entries[name] = replace(was_given, value=values[name]) if was_given else Entry(values[name], origin)
        elif was_given is not None:
            entries[name] = replace(was_given, is_unknown=True)
        elif one.is_required or not inputs.is_sound:
            entries[name] = Entry("", origin, is_unknown=True)
    return replace(given, entries=entries, declared=frozenset(inputs.entries))


def _sound_values(
    inputs: Inputs,
    known: Mapping[str, Value],
    coming: set[str],
    fuel: Fuel,
    tell: Callable[[Fault], None],
    *,
    whose: str = "",
) -> Mapping[str, Value]:
    """The values of inputs that are right, by default or as given; every fault is told."""
    if not inputs.is_sound:
        return {}
    try:
        fuel.burn(_FUEL_PER_CHAR * min(_chars_to_match(inputs, known), limits.INPUTS_BYTES_MAX))
    except TemplateError:
        message = "the patterns of all inputs would go through more text than one plan may cost"
        tell(Fault((), "inputs-too-large", message, "give shorter texts, or fewer"))
        coming, known = coming | known.keys(), {}
    checked = check_inputs(inputs, known, pending=coming, whose=whose)
    for fault in checked.faults:
        tell(fault)
    return checked.values


def _chars_to_match(inputs: Inputs, given: Mapping[str, Value]) -> int:
    """Of all texts that a pattern will go through."""
    matched = [name for name, one in inputs.entries.items() if one.domain.is_matched and name in given]
    return sum(chars_in(given[name]) for name in matched)


def _said(fault: Fault) -> tuple[str, str, str]:
    return fault.code, fault.message, fault.hint


def _path(path: Path, fault: Fault) -> Path:
    for part in fault.at:
        path /= part
    return path


def _place_in(node: Node, fault: Fault) -> Place:
    """The value that the fault is about, as near as the document has it; the key, of a name that is not known."""
    for part in fault.at:
        if isinstance(node, MapNode) and isinstance(part, str) and part in node.entries:
            if fault.code == "unknown-input":
                return node.keys[part]
            node = node.entries[part]
        elif isinstance(node, ListNode) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
        else:
            break
    return node
