"""The verbs `lint` and `plan`: what a definition is worth before anything runs; neither needs a server."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pistage.cli import documents, findings, groups, options, output, terminal
from pistage.cli.home import Home
from pistage.config import ClientConfig, Config
from pistage.errors import PistageError

if TYPE_CHECKING:
    from pistage.core.definition import Lint

_REFUSED = 2
_DIRECTORY = click.Path(path_type=Path, file_okay=False, exists=True)


@click.command("lint", short_help="Check definitions; needs no server.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--actions", type=_DIRECTORY, metavar="DIR", help="Actions that the definitions may name.")
@output.format_option("table", "json", "yaml", "name")
def lint_verb(*, files: tuple[str, ...], actions: Path | None, fmt: str) -> int:
    """Check definitions; needs no server. `-` reads stdin.

    Exits 0 with warnings, 2 with errors; a text that had to be repaired is printed as it was understood. A `dep` that
    cannot be looked up is a warning: say where with --actions.
    """
    from pistage.core.definition import lint

    look_up = documents.local_actions(actions)
    reports = [_report(file, lint(documents.read_text(file), actions=look_up)) for file in files]
    if fmt == "table":
        for report in reports:
            _print_lint(report)
    if fmt == "name":
        for report in reports:
            for finding in report["findings"]:
                output.say(findings.line(finding, report["file"]))
            click.echo(terminal.one_line(str(report["name"] or "")))
    elif fmt != "table":
        output.print_value(_plain(reports), fmt=fmt)
    return _REFUSED if any(findings.has_error(report["findings"]) for report in reports) else 0


def _report(file: str, checked: Lint) -> dict[str, Any]:
    return {
        "file": file,
        "name": checked.name,
        "dialect": checked.dialect,
        "findings": findings.plain(checked.findings),
        "parameters_needed": list(checked.parameters_needed),
        "images_missing": list(checked.images_missing),
        "normalised": checked.normalised,
    }


def _print_lint(report: Mapping[str, Any]) -> None:
    for finding in report["findings"]:
        click.echo(findings.line(finding, report["file"]))
    if report["normalised"] is not None:
        output.say(f"{report['file']}: understood as:")
        click.echo(terminal.clean(report["normalised"]), nl=not report["normalised"].endswith("\n"))
    if findings.has_error(report["findings"]):
        return
    parameters, images = report["parameters_needed"], report["images_missing"]
    needs = [f"parameters {', '.join(parameters)}"] if parameters else []
    needs += [f"an image for {', '.join(map(str, images))}"] if images else []
    output.say(f"{report['file']}: {report['name']}: fine" + (f"; needs {' and '.join(needs)}" if needs else ""))


@click.command("plan", short_help="Show what would run: tasks, steps, images, commands.")
@click.argument("target", metavar="FILE|ACTION")
@options.submission_options
@click.option("--actions", type=_DIRECTORY, metavar="DIR", help="Look actions up here, not in a cluster.")
@output.format_option("table", "json", "yaml", "name")
@options.client_options
def plan_verb(
    *,
    target: str,
    pairs: tuple[str, ...],
    with_file: Path | None,
    start_node: str | None,
    actions: Path | None,
    fmt: str,
    config: Config[ClientConfig],
) -> int:
    """Show what would run: tasks, steps, contexts, images, commands, and where each parameter came from.

    Actions are looked up where `pistage run` would find them; with --actions, in that directory and nowhere else but
    among the predefined.
    """
    given = documents.parameters(pairs, with_file)
    body = documents.submission(target, parameters=given, start_node=start_node)
    is_there = actions is None and (bool(config.settings.server) or Home(config.settings.data_dir).is_used())
    try:
        with documents.named(target):
            plan, found = groups.run(_plan_there(config, body)) if is_there else _plan_here(body, actions)
    except PistageError as error:
        if fmt not in {"json", "yaml"} or not findings.of(error):
            raise
        output.print_value({"plan": None, "findings": findings.of(error)}, fmt=fmt)
        return error.exit_code
    match fmt:
        case "table":
            for finding in found:
                output.say(findings.line(finding, target), fg="yellow")
            for line in _described(plan):
                click.echo(line)
        case "name":
            click.echo(terminal.one_line(plan["name"]))
        case _:
            output.print_value({"plan": plan, "findings": found}, fmt=fmt)
    return 0


async def _plan_there(config: Config[ClientConfig], body: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    from pistage.cli.connect import connect

    async with connect(config) as connection:
        answer = await connection.client.plan(body)
    return answer["plan"], answer.get("findings") or []


def _plan_here(body: dict[str, Any], actions: Path | None) -> tuple[dict[str, Any], list[Any]]:
    import json

    from pistage.core import codec
    from pistage.core.definition import make_plan
    from pistage.core.plan import Plan, redacted
    from pistage.errors import Code

    look_up = documents.local_actions(actions)
    text = body.get("definition")
    if text is None:
        if (action := look_up(body["action"])) is None:
            raise PistageError(Code.NOT_FOUND, f"no file and no action {body['action']!r}", hint="see --actions")
        text = action.text
    planned = make_plan(text, actions=look_up, parameters=body.get("with") or {}, start_node=body.get("start_node"))
    plan: dict[str, Any] = json.loads(codec.to_json(Plan, redacted(planned.plan)))
    return plan, findings.plain(planned.findings)


def _described(plan: Mapping[str, Any]) -> Iterator[str]:
    yield click.style(terminal.one_line(plan["name"]), bold=True) + f" ({plan['dialect']})"
    for kind in ("networks", "volumes"):
        for item in plan.get(kind) or []:
            yield f"  {kind[:-1]} {terminal.one_line(item['name'])} ({item['driver']})"
    for pin in plan.get("pins") or []:
        version = f"version {pin['version']}" if pin["version"] else "from --actions"
        kind = "predefined" if pin["is_predefined"] else version
        yield f"  action {terminal.one_line(pin['name'])} ({kind}, sha256 {pin['sha256'][:12]})"
    for task in plan["tasks"]:
        needs = (f" after {', '.join(task['needs'])}" if task.get("needs") else "") + _terms(task)
        skipped = f" — skipped: {task['skip_reason']}" if task.get("skip_reason") else ""
        yield f"task {click.style(terminal.one_line(task['name'] + needs + skipped), bold=True)}"
        contexts = {context["id"]: context for context in task["contexts"]}
        for service in task.get("services") or []:
            yield f"  service {terminal.one_line(service['name'])} [{terminal.one_line(service['image'])}]"
        yield from _node_lines(task["body"], contexts, "  ")


def _node_lines(node: Mapping[str, Any], contexts: Mapping[str, Any], indent: str) -> Iterator[str]:
    for child in node["children"]:
        if child["kind"] == "step":
            yield from _step_lines(child, contexts, indent)
            continue
        asynchronous = " async" if child.get("is_async") else ""
        yield f"{indent}{child['kind']}{asynchronous} {terminal.one_line(child.get('name') or '')}".rstrip()
        yield from _node_lines(child, contexts, indent + "  ")


def _step_lines(step: Mapping[str, Any], contexts: Mapping[str, Any], indent: str) -> Iterator[str]:
    image = contexts[step["context"]]["image"]
    asynchronous = " async" if step.get("is_async") else ""
    about = f"{step['id']}. {step['name']} — {step['context']} [{image}]{asynchronous}{_terms(step)}"
    yield indent + terminal.one_line(about)
    for line in _command(step):
        yield f"{indent}     {line}"
    for parameter in step.get("parameters") or []:
        told = f"{parameter['name']} = {parameter['value']}  ({parameter['origin']})"
        yield f"{indent}   with {terminal.one_line(told)}"


def _terms(work: Mapping[str, Any]) -> str:
    """When a task or a step runs, for how long and how often, where that is not what one would expect."""
    terms = [f"when {work['when']}"] if work.get("when", "success") != "success" else []
    terms += [f"timeout {output.duration(work['timeout_s'])}"] if work.get("timeout_s") else []
    again = work.get("retries") or ((work.get("retry") or {}).get("limits") or {}).get("failure")
    terms += [f"retry {again}"] if again else []
    return f" ({', '.join(terms)})" if terms else ""


def _command(step: Mapping[str, Any]) -> Sequence[str]:
    if step.get("script") is not None:
        return [f"$ {line}" for line in terminal.clean(step["script"]).splitlines()]
    if (program := step.get("program")) is not None:
        words = shlex.join([*program["command"], f"script{program['ending']}", *program["args"]])
        needs = f", with {', '.join(program['requirements'])}" if program["requirements"] else ""
        about = f"{program['language']}: {words}{needs}{' and standard input' if program['stdin'] else ''}"
        return [terminal.one_line(about), *(f"| {line}" for line in terminal.clean(program["text"]).splitlines())]
    entrypoint, command = step.get("entrypoint"), step.get("command")
    said = f"entrypoint {entrypoint if entrypoint is not None else 'of the image'}"
    return [terminal.one_line(f"{said}, command {command if command is not None else 'of the image'}")]


def _plain(value: Any) -> Any:
    """Tuples as lists, so that YAML and JSON show the same."""
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case None | bool() | int() | float():
            return value
        case _:
            return str(value)
