"""A container that steps share: kept alive by a process of ours, each step's command an exec in it.

An engine does not store what an exec prints. So a small shell script around the command leads each of its streams
through a FIFO into `tee`, which writes a spool file in the container and the exec's own stream, which we read. After
the command the script sends a trailer through the same FIFOs: its nonce and the exit code. Whoever has read both
trailers has all of the output and knows how the command ended, even if a process that it left behind still holds
the streams; and an agent that is killed and started again reads the same from the spool files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from aiodocker.stream import Stream

from pistage.agent import policy
from pistage.agent.runtimes.attached import close
from pistage.agent.runtimes.base import (
    STDERR,
    STDOUT,
    Command,
    ExecutionError,
    Exit,
    Notebook,
    Running,
    Sink,
    script_argv,
)
from pistage.agent.runtimes.docker_own import wait_for_engine
from pistage.agent.runtimes.engine import Engine, EngineError, EngineGoneError
from pistage.agent.runtimes.trailer import TrailerScanner
from pistage.core.plan import FailureClass

_POLL_S = 0.5
_SPOOL = "/.pistage"
_NO_SPOOL = 125  # the script's own: it could not begin

#: The container's process. Arguments: "open" to let any user write to the directories it makes, the directories.
#: `wait` reaps what steps leave behind. The spool directory comes last: it says that everything is ready.
_KEEPER = r"""
open=$1; shift
for w; do [ -d "$w" ] || { mkdir -p "$w" && [ "$open" != open ] || chmod 1777 "$w"; }; done
trap 'exit 0' TERM INT
mkdir -m 1777 /.pistage
while :; do sleep 86400 & wait $!; done
"""

#: Around each command. Arguments: its key, its nonce, its working directory, the words to run.
#: Signals that end the command must not end the script and `tee`: they are what brings the rest of the output. What the
#: shell itself has to say of a command that was killed is no output of it.
_WRAPPER = r"""
d=/.pistage/$1; n=$2; w=$3; shift 3
i=0; until [ -d /.pistage ]; do i=$((i+1)); [ $i -lt 300 ] || exit 125; sleep 0.1 2>/dev/null || sleep 1; done
mkdir "$d" || exit 125
trap : TERM INT HUP
if mkfifo "$d/1" "$d/2" 2>/dev/null && command -v tee >/dev/null; then
  ( trap '' TERM INT HUP PIPE; exec tee "$d/out" <"$d/1" 2>/dev/null 3>&- ) & a=$!
  ( trap '' TERM INT HUP PIPE; exec tee "$d/err" <"$d/2" 1>&2 2>/dev/null ) & b=$!
  exec 3>"$d/1" 4>"$d/2"
  echo "$$ $a $b" >"$d/pid"
else
  exec 3>&1 4>&2
  echo "$$" >"$d/pid"
fi
if cd "$w" 2>&4 3>&-; then { ( exec "$@" </dev/null >&3 2>&4 3>&- 4>&- ); c=$?; } 2>/dev/null; else c=126; fi
printf '\001%s:%s\n' "$n" "$c" >&3
printf '\001%s:%s\n' "$n" "$c" >&4
exec 3>&- 4>&-
wait
exit "$c"
"""

#: Signals every process of a command but the script and `tee`. Arguments: key, signal.
_SIGNAL = r"""
s=$2; read -r keep <"/.pistage/$1/pid" || exit 0
leader=${keep%% *}
for f in /proc/[0-9]*/stat; do
  read -r line 2>/dev/null <"$f" || continue
  pid=${f#/proc/}; pid=${pid%/stat}
  set -- ${line##*) }
  [ "$4" = "$leader" ] || continue
  case " $keep " in *" $pid "*) ;; *) kill -s "$s" "$pid" 2>/dev/null ;; esac
done
exit 0
"""

#: Reads the spool from two offsets. Arguments: key, offset+1 of stdout, of stderr, a word that comes first on both: an
#: engine that cannot start an exec says so where the output would be. Ends with 3 if there is no spool, 0 if the
#: command's script still ran before the reading began, 1 if it did not.
_READER = r"""
d=/.pistage/$1; [ -f "$d/pid" ] || exit 3
read -r p rest <"$d/pid"; alive=1; [ -d "/proc/$p" ] && alive=0
printf %s "$4"; printf %s "$4" >&2
[ -f "$d/out" ] && tail -c "+$2" "$d/out"
[ -f "$d/err" ] && tail -c "+$3" "$d/err" >&2
exit $alive
"""


#: Reads what nobody reads any more of the exec's own streams: an engine that comes back takes no part in execs of
#: before, and `tee`, which writes to both, would stand still once their pipes are full. Run as the user of the command,
#: into whose processes it must look. Ends with 3 where nothing runs yet; what it starts ends with the pipes.
_DRAIN = r"""
d=/.pistage/$1; [ -f "$d/pid" ] || exit 3
read -r p a b <"$d/pid"; [ -n "$b" ] || exit 0
for t in "$a" "$b"; do cat <"/proc/$t/fd/1" >/dev/null 2>&1 & done
"""


class SharedContainer:
    """One context's container, made at its first command."""

    def __init__(
        self,
        engine: Engine,
        notebook: Notebook,
        *,
        context_id: str,
        image: Callable[[], Awaitable[dict[str, Any]]],
        create: Callable[[policy.ContainerSpec], Awaitable[str | None]],
        name: str,
        workdirs: Sequence[str],
        users: Sequence[str],
    ) -> None:
        self._engine = engine
        self._notebook = notebook
        self._context_id = context_id
        self._image = image
        self._create = create
        self._name = name
        self._workdirs = workdirs
        self._users = users
        self._lock = asyncio.Lock()
        self._container = ""
        self._config: dict[str, Any] = {}

    async def start(self, command: Command) -> Running:
        """Start a command in it, or find it again."""
        async with self._lock:
            if not self._container:
                await self._open()
        note = f"exec:{command.key}"
        nonce = self._notebook.read(note)
        if nonce is not None:
            relaunch = partial(self._launch, command, nonce)
            return ExecProcess(
                self._engine, self._container, command.key, nonce, user=self._user(command), relaunch=relaunch
            )  # fmt: skip
        nonce = os.urandom(12).hex()
        self._notebook.write(note, nonce)
        await self._notebook.flush()  # else a command could be started twice, in a container that outlives our machine
        stream = await self._launch(command, nonce)
        return ExecProcess(
            self._engine, self._container, command.key, nonce, user=self._user(command), stream=stream
        )  # fmt: skip

    async def _open(self) -> None:
        image = await self._image()
        self._config = image.get("Config") or {}
        is_open = not all(is_root(user) for user in [self._config.get("User"), *self._users])
        spec = policy.ContainerSpec(
            image="",
            entrypoint=("/bin/sh", "-c", _KEEPER, "pistage"),
            command=("open" if is_open else "closed", *self._workdirs),
            user="0",
            workdir="/",
        )
        container = await self._create(spec)
        if container is None or self._notebook.is_inherited:
            container = await self._inherited(container)
        else:
            await self._engine.start(container)
        self._container = container

    async def _inherited(self, fresh: str | None) -> str:
        """The container that an agent before this one made; if it made one and that is gone, so is the attempt."""
        known = await self._engine.inspect(fresh or self._name)
        has_run = any(True for _ in self._notebook.notes("exec:"))
        status = known["State"]["Status"] if known else "gone"
        if known and status == "running":
            return str(known["Id"])
        if known and status == "created" and not (has_run and fresh):
            await self._engine.start(known["Id"])
            return str(known["Id"])
        raise ExecutionError(FailureClass.LOST, f"the container of context {self._context_id} is {status}")

    async def _launch(self, command: Command, nonce: str) -> Stream:
        if command.archive:
            await self._engine.unpack(self._container, command.archive)
        body = {
            "Cmd": ["/bin/sh", "-c", _WRAPPER, "pistage", command.key, nonce, command.workdir, *self._words(command)],
            "Env": [f"{name}={value}" for name, value in command.env.items()],
            "User": self._user(command),
            "WorkingDir": "/",
            "AttachStdout": True,
            "AttachStderr": True,
        }
        exec_id = await self._engine.create_exec(self._container, body)
        command.launch.begin()
        return await self._engine.start_exec(exec_id)

    def _user(self, command: Command) -> str:
        return command.user or self._config.get("User") or ""

    def _words(self, command: Command) -> list[str]:
        if command.script is not None:
            return script_argv(command.script)
        entrypoint = command.entrypoint if command.entrypoint is not None else self._config.get("Entrypoint") or ()
        # As the engine has it: an entrypoint of one's own does away with the image's command.
        default = () if command.entrypoint is not None else self._config.get("Cmd") or ()
        return [*entrypoint, *(command.command if command.command is not None else default)]


def is_root(user: str | None) -> bool:
    """Whether a container's `User` is root, which it is unless something is said."""
    return (user or "").partition(":")[0] in {"", "0", "root"}


class ExecProcess:
    """A command in a shared container."""

    def __init__(
        self,
        engine: Engine,
        container: str,
        key: str,
        nonce: str,
        *,
        user: str,
        relaunch: Callable[[], Awaitable[Stream]] | None = None,
        stream: Stream | None = None,
    ) -> None:
        self._engine = engine
        self.container = container
        self._key = key
        self._nonce = nonce
        self._user = user
        self._is_drained = False
        self._relaunch = relaunch
        self._stream = stream
        self._scanners = {number: TrailerScanner(nonce) for number in (STDOUT, STDERR)}

    async def ended(self, sink: Sink) -> Exit:
        """See `Running`."""
        while True:
            try:
                if self._stream is not None:
                    await self._listen(sink)
                if (code := self._code()) is None:
                    code = await self._read_spool(sink)
                return await self._exit(code)
            except EngineGoneError as gone:
                await wait_for_engine(self._engine, gone)
            except EngineError as error:
                raise ExecutionError(FailureClass.LOST, f"its container is gone: {error.message}") from None

    def _code(self) -> int | None:
        """The exit code, once both trailers have been read."""
        codes = [scanner.code for scanner in self._scanners.values()]
        return None if None in codes else codes[0]

    async def _listen(self, sink: Sink) -> None:
        """What the exec's stream carries, up to both trailers; or to its end, which may come too early."""
        stream, self._stream = self._stream, None
        assert stream is not None
        offsets = {number: sink.length_of(number) for number in self._scanners}
        try:
            while self._code() is None and (message := await stream.read_out()) is not None:
                text = self._scanners[message.stream].feed(message.data)
                if text:
                    await sink.write(message.stream, offsets[message.stream], text)
                    offsets[message.stream] += len(text)
        except OSError as error:
            raise EngineGoneError(str(error)) from None
        finally:
            await close(stream)

    async def _read_spool(self, sink: Sink) -> int:
        """Poll the spool files until they have the trailers."""
        while True:
            if not self._is_drained:
                await self._drain()
            for number in self._scanners:
                self._scanners[number] = TrailerScanner(self._nonce)
            state = await self._read_once(sink)
            if (code := self._code()) is not None:
                return code
            if state == 3 and self._relaunch is not None:
                # The agent before this one ended between its note and the exec: the command never began.
                self._stream, self._relaunch = await self._relaunch(), None
                await self._listen(sink)
            elif state != 0:
                return await self._untold(state)
            else:
                await asyncio.sleep(_POLL_S)

    async def _drain(self) -> None:
        """From now on the spool is what is read; see to it that it goes on."""
        exec_id = await self._helper(_DRAIN, [self._key], user=self._user)
        await self._heard(await self._engine.start_exec(exec_id))
        self._is_drained = (await self._engine.exec_state(exec_id) or {}).get("ExitCode") == 0

    async def _heard(self, stream: Stream) -> bytes:
        """All that a helper says."""
        text = b""
        try:
            while (message := await stream.read_out()) is not None:
                text += message.data
        finally:
            await close(stream)
        return text

    async def _read_once(self, sink: Sink) -> int | None:
        offsets = {number: sink.length_of(number) for number in self._scanners}
        word = os.urandom(12).hex()
        heads = dict.fromkeys(self._scanners, word.encode())  # what of it is still to come
        exec_id = await self._helper(_READER, [self._key, *(str(offset + 1) for offset in offsets.values()), word])
        stream = await self._engine.start_exec(exec_id)
        try:
            while (message := await stream.read_out()) is not None:
                number, data = message.stream, message.data
                head = heads.get(number, word.encode())
                if not data.startswith(head) and not head.startswith(data):
                    raise EngineGoneError(f"it says: {data[:200].decode('utf-8', 'replace')}")
                heads[number], data = head[len(data) :], data[len(head) :]
                if text := self._scanners[number].feed(data):
                    await sink.write(number, offsets[number], text)
                    offsets[number] += len(text)
        finally:
            await close(stream)
        return (await self._engine.exec_state(exec_id) or {}).get("ExitCode")

    async def _untold(self, state: int | None) -> int:
        """The command's script ended without a trailer: it was killed, or could not begin."""
        known = await self._engine.inspect(self.container)
        if known is None or known["State"]["Status"] != "running":
            raise ExecutionError(FailureClass.LOST, "its container ended under it")
        if state == 3:
            reason = (
                "the command could not be started in its container: its output says why, else there is no /bin/sh in it"
            )
            raise ExecutionError(FailureClass.FAILURE, reason, exit_code=_NO_SPOOL)
        return 137

    async def _exit(self, code: int) -> Exit:
        return Exit(code=code, is_oom=code == 137 and await self._has_run_out_of_memory())

    async def _has_run_out_of_memory(self) -> bool:
        """Whether the kernel killed anything in it for its memory limit; engines do not say so of an exec."""
        script = "cat /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control 2>/dev/null"
        exec_id = await self._helper(script, [])
        text = await self._heard(await self._engine.start_exec(exec_id))
        counts = [line.split()[1] for line in text.splitlines() if line.startswith(b"oom_kill ")]
        return any(count != b"0" for count in counts)

    async def _helper(self, script: str, words: Sequence[str], *, user: str = "0") -> str:
        body = {
            "Cmd": ["/bin/sh", "-c", script, "pistage", *words],
            "User": user, "WorkingDir": "/", "AttachStdout": True, "AttachStderr": True,
        }  # fmt: skip
        return await self._engine.create_exec(self.container, body)

    async def signal(self, name: str) -> None:
        """See `Running`."""
        with contextlib.suppress(EngineGoneError, EngineError):
            await self._heard(await self._engine.start_exec(await self._helper(_SIGNAL, [self._key, name])))
