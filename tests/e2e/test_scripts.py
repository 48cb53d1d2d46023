"""`pistage script` as a user meets it, in a sandbox and in a container: what comes out, and with which exit code."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import Processes, a_cluster, ended, output_of, until
from tests.e2e.script_packages import write_both
from tests.engine import remove_packages, require_engine
from tests.master.fakes import Api

pytestmark = pytest.mark.slow

HOSTILE = ["{{ .x }}", "{% if a %}", "$(id)", "`id`", "a b", "'", '"', "\\", "*", "", "--", "-x", "é\u2028\n\t;|&"]
Cluster = tuple[Processes, Api]


@pytest.fixture(params=["sandbox", pytest.param("docker", marks=pytest.mark.engine)])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    if request.param == "docker":
        require_engine("python:3.12-slim", "node:22-slim", "alpine:3")
    packages = write_both(tmp_path / "packages of ours")
    languages = {name: {"packages": str(packages)} for name in ("python", "node")}
    async with a_cluster(tmp_path, runtime=request.param, agent_flags=("--languages", json.dumps(languages))) as both:
        yield both
    if request.param == "docker":
        await remove_packages("", (tmp_path / "agent" / "id").read_text())


async def script(cluster: Cluster, name: str, text: str, *words: str, stdin: bytes | None = None) -> tuple[Any, ...]:
    """Exit code, stdout, stderr. Options of the verb stand before "--" in the words, arguments behind it."""
    (cluster[0].directory / name).write_text(text, encoding="utf-8", newline="")
    at = words.index("--") if "--" in words else len(words)
    return await cluster[0].cli("script", *words[:at], name, *words[at + 1 :], stdin=stdin)


PYTHON = """\
import os, sys
print("arguments", sys.argv[1:])
print("read", sys.stdin.buffer.read())
print("variable", os.environ["COLOUR"], file=sys.stderr)
import greeting
print(greeting.greet("you"))
sys.exit(7)
"""

NODE = """\
const greeting = require("greeting")
console.log("arguments", JSON.stringify(process.argv.slice(2)))
console.log("read", require("fs").readFileSync(0).toString("hex"))
console.error("variable", process.env.COLOUR)
console.log(greeting.greet("you"))
process.exit(7)
"""


async def test_a_python_script_has_arguments_input_a_requirement_and_its_own_exit_code(cluster: Cluster) -> None:
    asked = ("--require", "greeting", "-e", "COLOUR=red {{ .x }}", "--", "one", "--two", "three four")
    code, out, err = await script(cluster, "hello.py", PYTHON, *asked, stdin=b"\0\xff\n")
    assert out.decode() == (
        "arguments ['one', '--two', 'three four']\nread b'\\x00\\xff\\n'\nhello you from 1.10.0\n"
    ), err  # fmt: skip
    assert (code, err) == (7, b"variable red {{ .x }}\n")


async def test_a_node_script_has_arguments_input_a_requirement_and_its_own_exit_code(cluster: Cluster) -> None:
    if shutil.which("node") is None:
        pytest.skip("no node here")
    asked = ("--require", "greeting@1.0.0", "-e", "COLOUR=red", "--", "one", "--two", "three four")
    code, out, err = await script(cluster, "hello.js", NODE, *asked, stdin=b"\0\xff\n")
    assert out.decode() == 'arguments ["one","--two","three four"]\nread 00ff0a\nhello you from 1.0.0\n', err
    assert (code, err) == (7, b"variable red\n")


async def test_a_crash_shows_its_traceback_on_stderr(cluster: Cluster) -> None:
    code, out, err = await script(cluster, "crash.py", "def f():\n    return 1 / 0\n\nf()\n")
    assert (code, out) == (1, b"")
    lines = err.decode().splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert any(line.endswith("line 2, in f") for line in lines)


async def test_a_module_of_node_is_told_by_its_ending_and_its_crash_is_seen(cluster: Cluster) -> None:
    if shutil.which("node") is None:
        pytest.skip("no node here")
    text = 'import fs from "node:fs"\nconsole.log(typeof fs.readFileSync)\nthrow new Error("no more")\n'
    code, out, err = await script(cluster, "crash.mjs", text)
    assert (code, out) == (1, b"function\n")
    assert b"Error: no more" in err
    assert b"script.mjs:3" in err


async def test_a_shell_script_is_told_by_its_first_line(cluster: Cluster) -> None:
    text = '#!/bin/sh\necho "$# $1"; cat; exit 3\n'
    code, out, err = await script(cluster, "hello", text, "--", "a b", stdin=b"x")
    assert (code, out, err) == (3, b"1 a b\nx", b"")


async def test_nothing_of_a_script_is_a_template_or_seen_by_a_shell(cluster: Cluster) -> None:
    text = (
        "import json, sys\n# {{ .x }} {% if %} ' \" $(id) `id` \\ \r\nprint(json.dumps([sys.argv[1:], '{{ .y }}']))\n"
    )
    code, out, err = await script(cluster, "odd {{ .z }}'.py", text, "--", *HOSTILE)
    assert (code, json.loads(out)) == (0, [HOSTILE, "{{ .y }}"]), err


async def test_a_script_of_a_megabyte_with_as_much_to_read(cluster: Cluster) -> None:
    tail = "import sys; print(len(TEXT), len(sys.stdin.read()))\n"
    text = "TEXT = '''" + "0123456789abcde\n" * 65_000 + "'''\n" + tail
    code, out, err = await script(cluster, "large.py", text, stdin=b"y" * (1 << 20))
    assert (code, out) == (0, b"1040000 1048576\n"), err


async def test_what_a_script_prints_arrives_byte_for_byte(cluster: Cluster) -> None:
    text = "import os\nfor n in 1, 2: os.write(n, bytes(range(256)) * 40 + b'no newline')\n"
    code, out, err = await script(cluster, "bytes.py", text)
    assert (code, out, err) == (0, bytes(range(256)) * 40 + b"no newline", bytes(range(256)) * 40 + b"no newline")


async def test_a_script_on_standard_input_reads_nothing(cluster: Cluster) -> None:
    text = b"#!/usr/bin/env python3\nimport sys; print(sys.argv[1:], sys.stdin.read() == '')\n"
    code, out, err = await cluster[0].cli("script", "-", "x", stdin=text)
    assert (code, out) == (0, b"['x'] True\n"), err


async def test_a_requirement_that_is_not_there_is_said_in_the_installers_words(cluster: Cluster) -> None:
    code, out, err = await script(cluster, "needs.py", "print(1)", "-r", "nowhere-to-be-found")
    assert (code, out) == (1, b"")
    assert b"requirements could not be installed" in err
    assert b"nowhere-to-be-found" in err


async def test_requirements_are_installed_once_for_all_who_ask_at_the_same_time(cluster: Cluster) -> None:
    text = "import greeting; print(greeting.__file__, greeting.greet('x'))"
    results = await asyncio.gather(*(script(cluster, f"s{n}.py", text, "-r", "greeting==1.0.0") for n in range(4)))
    assert [code for code, _, _ in results] == [0] * 4, results
    assert len({out for _, out, _ in results}) == 1
    marks = list((cluster[0].directory / "agent" / "packages").glob("*.ready"))
    assert len(marks) == 1


async def test_a_script_is_a_run_like_any_other(cluster: Cluster) -> None:
    owned, api = cluster
    code, out, _ = await script(cluster, "again.py", "import sys; print(sys.argv[1:])", "--", "{{ .a }}", "b")
    assert (code, out) == (0, b"['{{ .a }}', 'b']\n")
    code, out, err = await owned.cli("retry", "--plain", "again.py#1")
    assert (code, out) == (0, b"['{{ .a }}', 'b']\n"), err
    _, plan = await api.call(
        "GET", "/api/v1/runs/" + (await owned.cli("ps", "-o", "name"))[1].decode().split()[0] + "/plan"
    )
    (step,) = plan["plan"]["tasks"][0]["body"]["children"]
    assert step["program"]["text"] == "import sys; print(sys.argv[1:])"
    assert step["name"] == "again.py"


async def test_a_script_that_is_shown_as_a_definition_runs_as_one(cluster: Cluster) -> None:
    owned, _ = cluster
    text = "import os, sys; print(sys.argv[1:], os.environ['A'])"
    code, shown, err = await script(cluster, "doc.py", text, "--document", "-e", "A={{ .b }}", "--", "{{ .c }}")
    assert code == 0, err
    (owned.directory / "doc.json").write_bytes(shown)
    code, out, err = await owned.cli("run", "--plain", "doc.json")
    assert (code, out) == (0, b"['{{ .c }}'] {{ .b }}\n"), err


@pytest.mark.engine
@pytest.mark.parametrize("cluster", ["docker"], indirect=True)
async def test_a_script_is_a_step_among_others(cluster: Cluster) -> None:
    _, api = cluster
    steps = [
        {"script": "open('left', 'w').write('here')", "language": "python", "requirements": ["greeting"]},
        {"run": "cat left"},
        {"script": "import greeting; print(open('left').read(), greeting.__name__)", "file": "second.py",
         "requirements": ["greeting==1.0.0"], "stdin": "unread"},
    ]  # fmt: skip
    run = await ended(api, (await api.submit(json.dumps({"name": "mixed", "uses": {"main": steps}})))["id"])
    assert run["state"] == "succeeded", run
    assert await output_of(api, run["id"]) == b"herehere greeting\n"


async def test_a_script_that_takes_too_long_ends_with_124(cluster: Cluster) -> None:
    code, out, err = await script(cluster, "slow.py", "import time; print('begun'); time.sleep(600)", "--timeout", "2s")
    assert (code, out) == (124, b"begun\n")
    assert b"ran longer than its 2 s" in err


async def test_a_cancelled_script_ends_with_3(cluster: Cluster) -> None:
    owned, api = cluster

    async def begun() -> bool:
        _, page = await api.call("GET", "/api/v1/runs?state=running")
        return bool(page["items"])

    async with asyncio.TaskGroup() as group:
        running = group.create_task(script(cluster, "long.py", "import time; time.sleep(600)"))
        await until(begun)
        await owned.cli("cancel", "long.py#1")
    code, _, err = running.result()
    assert code == 3, err


async def test_what_is_no_script_is_refused_before_it_is_sent(cluster: Cluster) -> None:
    owned, api = cluster
    (owned.directory / "nul.py").write_bytes(b"print(1)\0")
    (owned.directory / "latin.py").write_bytes(b"print('\xe9')")
    (owned.directory / "huge.py").write_bytes(b"#" * ((1 << 20) + 1))
    (owned.directory / "empty.py").write_bytes(b"")
    (owned.directory / "what.xyz").write_bytes(b"print(1)")
    said = {}
    for name in ("nul.py", "latin.py", "huge.py", "empty.py", "what.xyz", "nowhere.py"):
        code, out, err = await owned.cli("script", name)
        assert (code, out) != (0, b""), name
        said[name] = err.decode()
    assert "holds a NUL character" in said["nul.py"]
    assert "is not UTF-8" in said["latin.py"]
    assert "more than 1,048,576 bytes" in said["huge.py"]
    assert "script is empty" in said["empty.py"]
    assert "which language" in said["what.xyz"]
    assert "cannot read nowhere.py" in said["nowhere.py"]
    odd = os.fsencode(owned.directory) + b"/odd\xff\n.py"
    Path(os.fsdecode(odd)).write_text("print('ran')", encoding="utf-8")
    code, out, err = await owned.cli("script", os.fsdecode(odd))
    assert (code, out) == (0, b"ran\n"), err
    code, _, err = await owned.cli("script", "what.xyz", os.fsdecode(b"\xff"))
    assert (code, "argument 1 is not UTF-8" in err.decode()) == (2, True)
    _, page = await api.call("GET", "/api/v1/runs")
    assert [run["name"] for run in page["items"]] == ["script.py"]
