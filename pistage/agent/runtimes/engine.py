"""The engine: the calls that the agent makes to a Docker-compatible engine, and how their failures are told apart.

Through aiodocker, by its lower calls where its higher ones lose something: its `log` drops the stream's number and
reports a broken connection as the end, its `attach` and `wait` make a round trip more than is needed.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import aiodocker
import aiohttp
from aiodocker.stream import Stream
from yarl import URL

from pistage.agent.runtimes.attached import Urgent
from pistage.core.plan import RegistryAuth

DEFAULT = "unix:///var/run/docker.sock"
_OUTPUT = frozenset({1, 2})  # streams; on others an engine speaks for itself
_HEADER = struct.Struct(">BxxxL")
_NO_CONNECTION = 900  # aiodocker's word for it
_WATCH_AGAIN_S = 0.5
_ABSENCES_MAX = 1_000  # that are remembered; nobody's command outlives as many
_CALL_TIMEOUT_S = 120.0  # a kill or a removal waits for the kernel; nothing else takes this long


class EngineGoneError(Exception):
    """The engine does not answer, or stopped answering in the middle."""


class EngineError(Exception):
    """The engine refused; `message` is in its own words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message.strip()


class Engine:
    """A client of one engine. Calls raise EngineGoneError or EngineError, and wait for ever only where they say so."""

    def __init__(self, address: str) -> None:
        self.address = address or os.environ.get("DOCKER_HOST") or DEFAULT
        self.api_version = (0, 0)
        self.absence_count = 0  # how often the engine has been seen to go away
        self._absences: deque[tuple[int, int, float]] = deque(maxlen=_ABSENCES_MAX)
        self.urgent = Urgent()
        self.is_away = False  # as far as `watch` has seen
        self._docker: aiodocker.Docker | None = None
        self._connector: aiohttp.BaseConnector | None = None

    @property
    def socket_path(self) -> str | None:
        """The path of the engine's socket, or None for an engine that is reached over the network."""
        return self.address.removeprefix("unix://") if self.address.startswith("unix://") else None

    async def connect(self) -> dict[str, Any]:
        """Find out what engine there is: its version, as it says it."""
        await self.close()
        # By default a connector lends out 100 connections, and each wait for a container takes one.
        if self.socket_path is not None:
            self._connector = aiohttp.UnixConnector(self.socket_path, limit=0)
            self._docker = aiodocker.Docker("unix://localhost", connector=self._connector)
        elif self.address.startswith(("tcp://", "http://")) and os.environ.get("DOCKER_TLS_VERIFY", "0") != "1":
            self._connector = aiohttp.TCPConnector(limit=0)
            self._docker = aiodocker.Docker(self.address.replace("tcp://", "http://"), connector=self._connector)
        else:
            self._docker = aiodocker.Docker(self.address)
        try:
            version = await self.json("GET", "version", versioned=False)
        except BaseException:
            await self.close()
            raise
        major, _, minor = str(version["ApiVersion"]).partition(".")
        self.api_version = (int(major), int(minor))
        self._docker.api_version = f"v{version['ApiVersion']}"
        return dict(version)

    async def close(self) -> None:
        """Close every connection."""
        if self._docker is not None:
            await self._docker.close()
            self._docker = None
        if self._connector is not None:
            await self._connector.close()
            self._connector = None

    async def watch(self) -> None:
        """For as long as there is an agent: notice when the engine goes away, however short its absence is."""
        query = {"filters": json.dumps({"type": ["daemon"]})}
        while True:
            try:
                async with self._request("GET", "events", query=query) as response:
                    self.is_away = False
                    async for _ in response.content.iter_any():
                        pass  # a reload: nothing to us
            except EngineGoneError:
                pass
            except EngineError:
                self.is_away = False
                return  # an engine that has no such events
            self.note_absence()
            await asyncio.sleep(_WATCH_AGAIN_S)

    def note_absence(self) -> None:
        """It is away now; asked again before it is back, nothing happens."""
        if not self.is_away:
            self.is_away = True
            self.absence_count += 1
            self._absences.append((self.absence_count, time.time_ns(), time.monotonic()))

    def absences_after(self, count: int) -> list[tuple[int, float]]:
        """When it went away, but for the first `count` times: nanoseconds UTC and monotonic seconds, by our clocks."""
        return [(at_ns, at_s) for number, at_ns, at_s in self._absences if number > count]

    async def clock_ahead_ns(self) -> int:
        """How far its clock is ahead of ours."""
        if self.socket_path is not None:
            return 0
        before_ns = time.time_ns()
        info = await self.json("GET", "info")
        between_ns = (before_ns + time.time_ns()) // 2
        try:
            told = datetime.fromisoformat(str(info["SystemTime"]))
        except (KeyError, ValueError):
            return 0
        return int(told.timestamp() * 1_000_000) * 1_000 - between_ns

    # --- calls ----------------------------------------------------------------------------------------------

    async def json(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None,
        timeout_s: float | None = _CALL_TIMEOUT_S, versioned: bool = True,
    ) -> Any:  # fmt: skip
        """One call; its answer as JSON, None where there is none. With `timeout_s` None it may wait for ever."""
        async with self._request(method, path, query=query, body=body, versioned=versioned, timeout_s=timeout_s) as got:
            text = await got.text()
        return json.loads(text) if text.strip() else None

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None,
        data: io.BytesIO | None = None, headers: Mapping[str, str] | None = None, timeout_s: float | None = None,
        versioned: bool = True,
    ) -> AsyncIterator[aiohttp.ClientResponse]:  # fmt: skip
        if self._docker is None:
            raise EngineGoneError("not connected")
        try:
            async with self._docker._query(
                path,
                method,
                params=dict(query) if query else None,
                data=data if body is None else json.dumps(body),
                headers=dict(headers or {}),
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                versioned_api=versioned,
            ) as response:
                try:
                    yield response
                finally:
                    # aiodocker leaves it to us: a connection whose answer was not read to its end is not used again.
                    response.close()
        except aiodocker.DockerError as error:
            raise _translated(error) from None
        except TimeoutError:
            raise EngineGoneError(f"the engine did not answer {method} {path.partition('?')[0]} in time") from None
        except (aiohttp.ClientError, OSError) as error:
            raise EngineGoneError(str(error) or type(error).__name__) from None

    async def attach(self, container: str) -> Stream:
        """Both streams of a container from now on, not yet connected to: enter it before the container is started."""
        return await self._hijack(f"containers/{container}/attach", {"stream": "1", "stdout": "1", "stderr": "1"}, None)

    async def start_exec(self, exec_id: str) -> Stream:
        """Start an exec and be attached to it."""
        return await self._hijack(f"exec/{exec_id}/start", {}, b'{"Detach":false,"Tty":false}')

    async def _hijack(self, path: str, query: Mapping[str, str], body: bytes | None) -> Stream:
        if self._docker is None:
            raise EngineGoneError("not connected")

        async def setup() -> tuple[URL, bytes | None, bool]:
            return URL(path).with_query(query), body, False

        stream = Stream(self._docker, setup)
        try:
            await stream.__aenter__()
        except aiodocker.DockerError as error:
            raise _translated(error) from None
        except (aiohttp.ClientError, OSError) as error:
            raise EngineGoneError(str(error) or type(error).__name__) from None
        return stream

    async def logs(
        self, container: str, *, is_following: bool, tail: int | None = None
    ) -> AsyncIterator[tuple[int, bytes]]:
        """The frames of a container's log from its beginning, or the last ones, each a message with its time before it.

        Ends at the end of the log, which an engine that was restarted sometimes finds too early when it follows; a
        connection that breaks raises EngineGoneError.
        """
        query = {"stdout": "1", "stderr": "1", "timestamps": "1", "follow": "1" if is_following else "0"}
        query |= {} if tail is None else {"tail": str(tail)}
        async with self._request("GET", f"containers/{container}/logs", query=query) as response:
            rest = b""
            async for chunk in response.content.iter_any():
                rest += chunk
                position = 0
                while len(rest) - position >= _HEADER.size:
                    stream, length = _HEADER.unpack_from(rest, position)
                    if len(rest) - position - _HEADER.size < length:
                        break
                    position += _HEADER.size
                    if stream not in _OUTPUT:
                        raise EngineGoneError(
                            f"it says: {rest[position : position + length].decode('utf-8', 'replace')}"
                        )
                    yield stream, rest[position : position + length]
                    position += length
                rest = rest[position:]
            if rest:
                raise EngineGoneError("the log broke off")

    # --- containers -----------------------------------------------------------------------------------------

    async def create(self, name: str, body: Mapping[str, Any]) -> str:
        """Create a container; its id."""
        answer = await self.json("POST", "containers/create", query={"name": name}, body=body)
        return str(answer["Id"])

    async def unpack(self, container: str, archive: bytes) -> None:
        """Unpack a tar at the root of a container, which need not have been started."""
        path, headers = f"containers/{container}/archive", {"Content-Type": "application/x-tar"}
        query = {"path": "/", "noOverwriteDirNonDir": "1"}
        data = io.BytesIO(archive)  # which is sent in pieces
        async with self._request("PUT", path, query=query, data=data, headers=headers, timeout_s=_CALL_TIMEOUT_S):
            pass

    async def start(self, container: str) -> None:
        """Start it; nothing happens if it runs."""
        await self.json("POST", f"containers/{container}/start")

    async def wait(self, container: str) -> int:
        """Wait, as long as it takes, until it has ended: its exit code."""
        answer = await self.json("POST", f"containers/{container}/wait", timeout_s=None)
        return int(answer["StatusCode"])

    async def inspect(self, container: str) -> dict[str, Any] | None:
        """What the engine knows of it, or None if it has none such."""
        return await self._or_none(f"containers/{container}/json")

    async def kill(self, container: str, signal: str) -> None:
        """Send a signal; nothing happens if it does not run."""
        try:
            await self.json("POST", f"containers/{container}/kill", query={"signal": signal})
        except EngineError as error:
            if error.status not in {404, 409}:
                raise

    async def remove(self, container: str) -> None:
        """Kill and remove it and its anonymous volumes; on return it is gone."""
        for _ in range(20):
            try:
                await self.json("DELETE", f"containers/{container}", query={"force": "1", "v": "1"})
                return
            except EngineError as error:
                if error.status == 404:
                    return
                if error.status != 409:  # "already in progress": by us, a moment ago
                    raise
                await asyncio.sleep(0.25)
        raise EngineGoneError(f"container {container[:12]} would not be removed")

    async def create_exec(self, container: str, body: Mapping[str, Any]) -> str:
        """Prepare a command in a running container; the exec's id."""
        answer = await self.json("POST", f"containers/{container}/exec", body=body)
        return str(answer["Id"])

    async def exec_state(self, exec_id: str) -> dict[str, Any] | None:
        """What the engine knows of an exec, or None if it has forgotten it."""
        return await self._or_none(f"exec/{exec_id}/json")

    async def _or_none(self, path: str) -> dict[str, Any] | None:
        try:
            return dict(await self.json("GET", path))
        except EngineError as error:
            if error.status == 404:
                return None
            raise

    # --- images ---------------------------------------------------------------------------------------------

    async def image(self, name: str) -> dict[str, Any] | None:
        """The image, or None if the engine does not have it."""
        return await self._or_none(f"images/{name}/json")

    async def pull(self, name: str, auth: RegistryAuth | None, *, timeout_s: float) -> None:
        """Pull an image; EngineError in the engine's or the registry's words."""
        headers = {"X-Registry-Auth": _registry_header(auth)} if auth and auth.username else {}
        has_tag = "@" in name or ":" in name.rpartition("/")[2]
        query = {"fromImage": name} | ({} if has_tag else {"tag": "latest"})
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._request("POST", "images/create", query=query, headers=headers) as response,
            ):
                async for line in response.content:
                    progress = json.loads(line) if line.strip() else {}
                    if message := progress.get("error"):
                        raise EngineError(500, str(message))
        except TimeoutError:
            raise EngineError(504, f"it took longer than {timeout_s:g} s") from None

    # --- networks and volumes -------------------------------------------------------------------------------

    async def volume(self, name: str) -> dict[str, Any] | None:
        """The volume, or None if there is none of that name."""
        return await self._or_none(f"volumes/{name}")

    async def listed(self, kind: str, labels: Sequence[str]) -> list[dict[str, Any]]:
        """The "containers" (also those that ended), "networks" or "volumes" that have all of these labels."""
        query = {"filters": json.dumps({"label": list(labels)})} | ({"all": "1"} if kind == "containers" else {})
        answer = await self.json("GET", f"{kind}" if kind != "containers" else "containers/json", query=query)
        return list((answer.get("Volumes") or []) if kind == "volumes" else answer)


def _translated(error: aiodocker.DockerError) -> Exception:
    if error.status == _NO_CONNECTION:
        return EngineGoneError(error.message)
    return EngineError(error.status, error.message)


def _registry_header(auth: RegistryAuth) -> str:
    fields = {"username": auth.username, "password": auth.password, "serveraddress": auth.server_address}
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()
