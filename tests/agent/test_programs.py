"""Scripts at the agent: on every runtime the same words, input and files; requirements that are had once."""

import asyncio
import io
import os
import stat
import tarfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pistage.agent.interpreters import Interpreters
from pistage.agent.packages import Packages
from pistage.agent.runtimes import programs
from pistage.agent.runtimes.base import ExecutionError
from pistage.agent.runtimes.engine import Engine
from pistage.agent.runtimes.process_programs import ProcessPrograms
from pistage.agent.runtimes.trees import remove_tree
from pistage.agent.service import Agent
from pistage.config import AgentConfig, Interpreter
from pistage.core import limits
from pistage.core.languages import Installer
from pistage.core.model import State
from pistage.core.plan import FailureClass, Program, Step
from pistage.wire import Cancel
from tests.agent.conftest import StartAgent, nothing_left
from tests.agent.fake_master import FakeMaster, info_of, program, script, task
from tests.e2e.processes import until
from tests.e2e.script_packages import write_both
from tests.engine import remove_packages, require_engine

ARGUMENTS = ("", "a b", "'", '"', "$(id)", "`id`", "\\", "*", "{{ .x }}", "-x", "--", "\n", "é")


@pytest.fixture(params=["sandbox", "host", pytest.param("docker", marks=pytest.mark.engine)])
async def agent(request: pytest.FixtureRequest, start_agent: StartAgent) -> AsyncIterator[Agent]:
    if request.param != "docker":
        yield await start_agent(request.param)
        return
    engine = request.getfixturevalue("engine")
    agent = await start_agent("docker", engine=engine)
    yield agent
    await nothing_left(engine, agent.agent_id)


@pytest.mark.usefixtures("agent")
async def test_no_shell_looks_into_arguments_or_code(master: FakeMaster) -> None:
    text = 'for word; do printf "%s|" "$word"; done # {{ .x }} $(exit 1)\n'
    end = await master.run(task(program(text, *ARGUMENTS)))
    assert end.result.state is State.SUCCEEDED, end.result.reason
    assert master.stdout(end.attempt_id).decode() == "|".join((*ARGUMENTS, ""))


@pytest.mark.usefixtures("agent")
async def test_it_reads_what_it_is_given_and_else_nothing(master: FakeMaster) -> None:
    data = bytes(range(256)) * 4096
    given = await master.run(task(program("cat", "a b", stdin=data)))
    assert master.stdout(given.attempt_id) == data
    bare = await master.run(task(program("cat; echo $?")))
    assert master.stdout(bare.attempt_id) == b"0\n"


@pytest.mark.usefixtures("agent")
async def test_it_works_in_the_workspace_and_its_code_is_one_megabyte_if_need_be(master: FakeMaster) -> None:
    text = (
        "pwd | grep -c workspace; touch left; ls\n"
        + "# a comment that fills this line to its very end, no more\n" * 18_000
    )
    end = await master.run(task(program(text)))
    assert end.result.state is State.SUCCEEDED, end.result.reason
    assert master.stdout(end.attempt_id) == b"1\nleft\n"


@pytest.mark.usefixtures("agent")
async def test_several_share_a_container_and_are_tried_again_in_place(master: FakeMaster) -> None:
    steps = (
        program('echo "$1" >>tries; [ "$(wc -l <tries)" -ge 3 ] || exit 9', "one", retries=2, reentry=("echo again",)),
        script("cat tries", id="2"),
        program('cat - tries | sort | uniq -c | tr -s " "', id="3", stdin=b"one\n"),
    )
    end = await master.run(task(*steps))
    assert end.result.state is State.SUCCEEDED, end.result.reason
    assert master.stdout(end.attempt_id) == b"again\nagain\n"
    assert master.stdout(end.attempt_id, "3").strip() == b"4 one"


@pytest.mark.usefixtures("agent")
async def test_its_exit_code_is_that_of_its_step(master: FakeMaster) -> None:
    end = await master.run(task(program("echo no >&2; exit 7")))
    assert (end.result.state, end.result.exit_code) == (State.FAILED, 7)
    assert master.stderr(end.attempt_id) == b"no\n"


@pytest.mark.engine
@pytest.mark.usefixtures("docker_agent")
async def test_whoever_the_image_runs_as_can_read_it_and_work(master: FakeMaster) -> None:
    step = program("id -u; cat; touch here", stdin=b"read\n")
    end = await master.run(task(step, image="nonroot:1"))
    assert end.result.state is State.SUCCEEDED, master.stderr(end.attempt_id)
    assert master.stdout(end.attempt_id) == b"1000\nread\n"


@pytest.mark.engine
@pytest.mark.usefixtures("docker_agent")
async def test_an_image_without_a_shell_runs_it_all_the_same(master: FakeMaster) -> None:
    made = Program(language="x", text="echo it ran $1", command=("/busybox", "sh"), args=("here",))
    step = Step(id="1", name="1", context="c1", program=made)
    end = await master.run(task(step, image="noshell:1"))
    assert master.stdout(end.attempt_id) == b"it ran here\n", end.result.reason


@pytest.mark.engine
@pytest.mark.usefixtures("docker_agent")
async def test_an_interpreter_that_the_image_lacks_is_127(master: FakeMaster) -> None:
    end = await master.run(task(program("x", language="python3")))
    assert (end.result.state, end.result.exit_code) == (State.FAILED, 127)
    assert "python3" in end.result.reason


async def test_a_language_that_the_agent_lacks_is_refused(master: FakeMaster, start_agent: StartAgent) -> None:
    await start_agent("sandbox")
    end = await master.run(task(program("x", language="cobol")))
    assert end.result.failure is FailureClass.REFUSED
    assert "no interpreter for cobol" in end.result.reason


@pytest.mark.parametrize(("runtime", "installs"), [("sandbox", {"sh"}), ("host", {"sh", "shell"})])
async def test_an_agent_says_for_which_of_them_it_can_install_requirements(
    master: FakeMaster, start_agent: StartAgent, tmp_path: Path, runtime: str, installs: set[str]
) -> None:
    await start_agent(runtime, languages={"shell": {"command": ["/bin/sh"]}, "sh": {"packages": str(tmp_path)}})
    await master.run(task(program("true", language="sh")))
    assert set(info_of(master).installs) & {"sh", "shell"} == installs


async def test_an_agent_says_which_interpreters_it_has(master: FakeMaster, start_agent: StartAgent) -> None:
    await start_agent("sandbox", languages={"shell": {"command": ["/bin/sh", "-x"]}, "node": {"command": ["/no/node"]}})
    languages = info_of(master).languages
    assert {"sh", "shell"} <= set(languages)
    assert "node" not in languages
    end = await master.run(task(program("echo $1", "a", language="shell")))
    assert master.stderr(end.attempt_id) == b"+ echo a\n"


def test_an_interpreter_outside_of_what_a_sandbox_sees_is_none(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "node").symlink_to("/bin/sh")
    own = tmp_path / "bin" / "own"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    settings = AgentConfig(languages={"own": Interpreter(command=("own",))})
    path = str(tmp_path / "bin")
    assert Interpreters(settings, path=path).names() == ("node", "own")
    assert Interpreters(settings, path=path, within=("/usr", "/bin")).names() == ("node",)


def test_an_archive_holds_files_that_all_may_read_and_nothing_else() -> None:
    made = Program(language="node", text="x", ending=".mjs", stdin="AAE=", requirements=("a",), installer=Installer.NPM)
    with tarfile.open(fileobj=io.BytesIO(programs.archive_of(made, "/pistage/1-retry1", "/pistage/packages/k"))) as tar:
        members = {member.name: member for member in tar.getmembers()}
        read = tar.extractfile("pistage/1-retry1/stdin")
        assert read is not None
        assert read.read() == b"\0\1"
    assert {name: (member.type, member.mode) for name, member in members.items()} == {
        "pistage": (tarfile.DIRTYPE, 0o755),
        "pistage/1-retry1": (tarfile.DIRTYPE, 0o755),
        "pistage/1-retry1/script.mjs": (tarfile.REGTYPE, 0o644),
        "pistage/1-retry1/stdin": (tarfile.REGTYPE, 0o644),
        "pistage/1-retry1/node_modules": (tarfile.SYMTYPE, 0o777),
    }


# --- requirements ------------------------------------------------------------------------------------------

NEEDY = Program(language="python", text="", command=("python3",), requirements=("b", "a"), installer=Installer.PIP)


def test_what_is_installed_is_told_apart_by_all_that_has_a_part_in_it(tmp_path: Path) -> None:
    def key(made: Program = NEEDY, where: str = "image", **source: object) -> str:
        return programs.packages_key(made, [where], Interpreter.model_validate(source))

    other = Program(language="python", text="", requirements=("a",), installer=Installer.PIP)
    again = Program(language="python", text="else", requirements=("a", "b"), installer=Installer.PIP)
    assert key() == key(again)
    assert len({key(), key(other), key(where="i"), key(index="http://i"), key(packages=tmp_path)}) == 5


async def test_a_removal_that_was_left_in_the_middle_takes_nothing_from_who_installs_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = AgentConfig(data_dir=tmp_path)
    shelf = ProcessPrograms(settings, Interpreters(settings, path=""), is_walled=False)
    files = tmp_path / "packages" / "key"
    (files / "half").mkdir(parents=True)
    removing, go_on, through = threading.Event(), threading.Event(), threading.Event()

    def slow(tree: Path) -> None:
        removing.set()
        assert go_on.wait(10)
        remove_tree(tree)
        through.set()

    monkeypatch.setattr("pistage.agent.runtimes.process_programs.remove_tree", slow)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(shelf._removed("key"))
        assert await asyncio.to_thread(removing.wait, 10)
        first.cancel()
    (files / "whole").mkdir(parents=True)
    go_on.set()
    assert await asyncio.to_thread(through.wait, 10)
    assert [path.name for path in files.parent.iterdir()] == ["key"]
    assert (files / "whole").exists()


def test_nothing_but_requirements_follows_the_installers_own_options() -> None:
    words = programs.install_words(NEEDY, ("python3",), Interpreter(index="https://i"), packages="/p", index="/i")
    assert words[:4] == ["python3", "-m", "pip", "install"]
    assert words[-5:] == ["--index-url", "https://i", "--", "b", "a"]


def test_an_index_without_tls_is_believed_since_who_runs_the_agent_named_it() -> None:
    index = "http://u:p@i.example:3141/root/pypi"
    words = programs.install_words(NEEDY, ("python3",), Interpreter(index=index), packages="/p", index="/i")
    assert words[-7:] == ["--index-url", index, "--trusted-host", "i.example:3141", "--", "b", "a"]


@pytest.mark.parametrize(
    ("requirement", "file"),
    [("a", "a-1.10.0.tgz"), ("a@1.9.0", "a-1.9.0.tgz"), ("@s/b", "s-b-2.0.0.tgz"), ("a@1.8.0", None), ("c", None)],
)
def test_npms_packages_in_a_directory_are_found_by_name_and_version(
    tmp_path: Path, requirement: str, file: str | None
) -> None:
    for name in ("a-1.9.0.tgz", "a-1.10.0.tgz", "a-1.10.0-rc1.tgz", "a-b-3.0.0.tgz", "s-b-2.0.0.tgz", "other.txt"):
        (tmp_path / name).touch()
    if file is None:
        with pytest.raises(ExecutionError, match="has no"):
            programs.tarball_of(tmp_path, requirement)
    else:
        assert programs.tarball_of(tmp_path, requirement) == file


class Shelf:
    """Packages whose making is counted, and waits for `go`."""

    def __init__(self, root: Path) -> None:
        self.packages = Packages(root, self._remove)
        self.made: list[str] = []
        self.removed: list[str] = []
        self.in_use: set[str] = set()
        self.go = asyncio.Event()
        self.go.set()
        self.fault: Exception | None = None
        self.slow: set[str] = set()
        self.faulty: set[str] = set()
        self.is_removing, self.may_remove = asyncio.Event(), asyncio.Event()

    async def _remove(self, key: str) -> bool:
        self.removed.append(key)
        if key in self.faulty:
            raise ExecutionError(FailureClass.LOST, "the engine went away")
        if key in self.slow:
            self.is_removing.set()
            await self.may_remove.wait()
        return key not in self.in_use

    async def ensure(self, key: str, holder: str) -> None:
        async def is_there() -> bool:
            return True

        async def make() -> None:
            await self.go.wait()
            if self.fault is not None:
                raise self.fault
            self.made.append(key)

        await self.packages.ensure(key, holder, is_there=is_there, make=make)


async def test_packages_are_made_once_for_all_who_ask(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "p")
    shelf.go.clear()
    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(shelf.ensure("k", f"attempt {number}"))
        shelf.go.set()
    assert shelf.made == ["k"]
    again = Shelf(tmp_path / "p")  # the agent was started again
    await again.ensure("k", "attempt 9")
    assert again.made == []


async def test_packages_whose_making_failed_are_made_anew(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.fault = ExecutionError(FailureClass.FAILURE, "no")
    with pytest.raises(ExecutionError):
        await shelf.ensure("k", "one")
    shelf.fault = None
    await shelf.ensure("k", "two")
    assert shelf.made == ["k"]


async def test_those_unused_for_longest_go_and_those_in_use_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PACKAGES_KEPT_MAX", 2)
    shelf = Shelf(tmp_path)
    for age, key in enumerate(("held", "busy", "old", "new")):
        await shelf.ensure(key, f"of {key}")
        mark = tmp_path / f"{key}.ready"
        os.utime(mark, (age, age))
    for key in ("busy", "old", "new"):
        shelf.packages.let_go(f"of {key}")
    shelf.in_use.add("busy")  # as far as the engine knows
    shelf.removed.clear()
    await shelf.ensure("newest", "x")
    assert {mark.name for mark in tmp_path.iterdir()} == {"held.ready", "busy.ready", "new.ready", "newest.ready"}
    assert shelf.removed == ["newest", "old", "busy"]


async def with_an_old_set(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """One that nobody holds, and that goes when there is another."""
    monkeypatch.setattr(limits, "PACKAGES_KEPT_MAX", 1)
    shelf = Shelf(directory)
    await shelf.ensure("old", "one")
    shelf.packages.let_go("one")
    os.utime(directory / "old.ready", (0, 0))
    return shelf


async def test_a_set_that_is_asked_for_while_it_is_removed_is_made_anew_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = await with_an_old_set(tmp_path, monkeypatch)
    shelf.slow.add("old")
    async with asyncio.TaskGroup() as group:
        group.create_task(shelf.ensure("new", "two"))
        await shelf.is_removing.wait()
        again = group.create_task(shelf.ensure("old", "three"))
        await asyncio.sleep(0.01)
        assert not again.done()
        shelf.slow.clear()
        shelf.may_remove.set()
    shelf.removed.clear()
    await shelf.ensure("old", "four")
    assert (shelf.made, "old" in shelf.removed) == (["old", "new", "old"], False)


async def test_a_set_that_could_not_be_removed_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = await with_an_old_set(tmp_path, monkeypatch)
    shelf.faulty.add("old")
    with pytest.raises(ExecutionError):
        await shelf.ensure("new", "two")
    shelf.faulty.clear()
    os.utime(tmp_path / "old.ready", (0, 0))
    await shelf.ensure("newer", "three")
    assert not (tmp_path / "old.ready").exists()
    assert not shelf.packages._locks.keys() & {"old"}


def needy(text: str, *requirements: str) -> Step:
    made = Program(
        language="python", text=text, ending=".py", command=("python3",), requirements=requirements,
        installer=Installer.PIP,
    )  # fmt: skip
    return Step(id="1", name="1", context="c1", program=made)


async def test_a_sandbox_installs_from_a_directory_only_and_says_so(
    master: FakeMaster, start_agent: StartAgent
) -> None:
    await start_agent("sandbox")
    end = await master.run(task(needy("x", "a")))
    assert end.result.failure is FailureClass.REFUSED
    assert "a sandbox has no network" in end.result.reason


@pytest.fixture(params=["sandbox", "host", pytest.param("docker", marks=pytest.mark.engine)])
async def runtime(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    if request.param == "docker":
        require_engine("python:3.12-slim")
    yield request.param
    if request.param == "docker":
        await remove_packages("", request.getfixturevalue("master").hellos[-1].info.id)


@pytest.mark.slow
async def test_packages_cannot_be_changed_by_who_uses_them(
    master: FakeMaster, runtime: str, start_agent: StartAgent, tmp_path: Path
) -> None:
    languages = {"python": {"packages": str(write_both(tmp_path / "wheels"))}}
    await start_agent(runtime, languages=languages)
    text = (
        "import greeting, os\nprint(greeting.greet('x'))\ntry:\n    open(greeting.__file__, 'a')\n"
        "except OSError as error:\n    print(error.errno)\n"
    )
    image = "python:3.12-slim"
    end = await master.run(task(needy(text, "greeting==1.0.0"), image=image))
    said = master.stdout(end.attempt_id)
    # A plain process is the agent's user, who owns them.
    assert said == b"hello x from 1.0.0\n" + (b"" if runtime == "host" else b"30\n"), end.result.reason


HANGS = ("/bin/sh", "-c", "echo installing; sleep 600", "sh")


@pytest.mark.slow
async def test_an_installation_ends_with_the_attempt_that_waits_for_it(
    master: FakeMaster, runtime: str, start_agent: StartAgent, tmp_path: Path
) -> None:
    languages = {"slow": {"command": HANGS, "packages": str(tmp_path)}}
    agent = await start_agent(runtime, languages=languages)
    made = Program(language="slow", text="x", command=HANGS, requirements=("a",), installer=Installer.PIP)
    step = Step(id="1", name="1", context="c1", program=made)
    assign = await master.assign(task(step, image="python:3.12-slim"))
    packages = tmp_path / "agent" / "packages"
    if runtime == "docker":
        await until(lambda: containers_of(agent))
    else:
        await until(lambda: list(packages.glob("installing-*")))
    await master.send(Cancel(attempt_id=assign.attempt_id, reason="enough"))
    end = await master.finished(assign)
    assert end.result.state is State.CANCELLED
    assert not list(packages.glob("installing-*"))
    assert not list(packages.glob("*.ready"))
    assert runtime != "docker" or not await containers_of(agent)


async def containers_of(agent: Agent) -> list[str]:
    engine = Engine("")
    await engine.connect()
    try:
        found = await engine.listed("containers", [f"pistage.agent={agent.agent_id}"])
    finally:
        await engine.close()
    return [one["Names"][0] for one in found if one["State"] == "running"]


async def test_files_of_a_script_go_with_its_attempt(
    master: FakeMaster, start_agent: StartAgent, tmp_path: Path
) -> None:
    await start_agent("sandbox")
    end = await master.run(task(program('stat -c %a "$0"; echo x >"$0"', stdin=b"a")))
    assert stat.S_IMODE(int(master.stdout(end.attempt_id), 8)) == 0o644
    assert b"Read-only file system" in master.stderr(end.attempt_id)
    assert end.result.state is State.FAILED  # so it was removed before that was told
    assert end.attempt_id not in [one.name for one in (tmp_path / "agent" / "workspaces").iterdir()]
