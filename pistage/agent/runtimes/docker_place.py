"""An attempt's place in an engine: its containers, networks and volumes, from the first to the last."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from pistage.agent import policy
from pistage.agent.gpus import GpuPool
from pistage.agent.runtimes.base import Command, ExecutionError, Notebook, Running, script_argv
from pistage.agent.runtimes.devices import AttemptGpus
from pistage.agent.runtimes.docker_log import ContainerLog
from pistage.agent.runtimes.docker_own import OwnProcess, wait_for_engine
from pistage.agent.runtimes.docker_programs import DockerPrograms
from pistage.agent.runtimes.docker_services import Services
from pistage.agent.runtimes.docker_shared import SharedContainer, is_root
from pistage.agent.runtimes.engine import EngineError, EngineGoneError
from pistage.core.plan import Context, FailureClass, RegistryAuth
from pistage.wire import Assign

if TYPE_CHECKING:
    from pistage.agent.runtimes.docker import DockerRuntime


class DockerPlace:
    """An attempt's containers, each named by the attempt's id and the context's, so that none is ever made twice."""

    def __init__(self, runtime: DockerRuntime, assign: Assign, notebook: Notebook, pool: GpuPool) -> None:
        self._runtime = runtime
        self._engine = runtime.engine
        self._assign = assign
        self._notebook = notebook
        self._prefix = f"pistage-{assign.attempt_id}"
        self._labels = {
            "pistage.cluster": assign.cluster_id,
            "pistage.agent": runtime.agent_id,
            "pistage.run": assign.run_id,
            "pistage.task": assign.task.name,
            "pistage.attempt": assign.attempt_id,
            "pistage.fence": str(assign.fence),
        }
        self._gpus = AttemptGpus(pool, assign.attempt_id, notebook)
        self._made: set[str] = set()
        self._removals: dict[str, asyncio.Task[bool]] = {}
        self._shared: dict[str, SharedContainer] = {}
        self._programs = DockerPrograms(self._engine, runtime.images, runtime.packages, assign, create=self._create_as)
        self._services = Services(self._engine, runtime.images, assign, self._create_service, network=self._prefix)

    async def prepare(self) -> None:
        """See `Place`."""
        if self._engine.is_away:
            # Who failed at once would be the emptiest agent for as long as its engine is away, and draw every task.
            await wait_for_engine(self._engine, EngineGoneError("it was away when the task came"))
        with translated():
            await self._make_networks_and_volumes()
            await self._services.start()

    async def _make_networks_and_volumes(self) -> None:
        contexts = self._assign.task.contexts
        networks = {attachment.network for context in contexts for attachment in context.networks}
        volumes = {mount.source for context in contexts for mount in context.mounts if mount.kind == "volume"}
        of_run = {key: self._labels[key] for key in ("pistage.cluster", "pistage.agent", "pistage.run")}
        for index, network in enumerate(self._assign.networks):
            name = policy.physical_network(network, self._assign.run_id, index)
            if network.name in networks and not network.is_external:
                await self._runtime.objects.make_network(name, network.driver, of_run)
        for index, volume in enumerate(self._assign.volumes):
            name = policy.physical_volume(volume, self._assign.run_id, index)
            if volume.name in volumes and not volume.is_external:
                await self._runtime.objects.make_volume(name, volume.driver, of_run)
        if self._assign.task.services:
            labels = of_run | {"pistage.attempt": self._assign.attempt_id}
            await self._runtime.objects.make_network(self._prefix, "bridge", labels)

    async def start(self, context: Context, command: Command) -> Running:
        """See `Place`."""
        with translated():
            if command.program is not None:
                command = await self._programs.readied(context, command, command.program)
            if self._assign.task.is_shared(context) or await self._needs_open_workspace(context, command):
                return await self._shared_container(context).start(command)
            return await self._start_own(context, command)

    async def _needs_open_workspace(self, context: Context, command: Command) -> bool:
        """Whether a user other than root runs a script or program: the engine makes its directory for root alone."""
        if command.script is None and not command.archive:
            return False
        image = await self._runtime.images.ensure(context.image, context.auth)
        user = command.user or (image.get("Config") or {}).get("User")
        return not is_root(user)

    def _shared_container(self, context: Context) -> SharedContainer:
        if context.id not in self._shared:
            steps = [step for step in self._assign.task.steps() if step.context == context.id]
            self._shared[context.id] = SharedContainer(
                self._engine,
                self._notebook,
                context_id=context.id,
                image=lambda: self._runtime.images.ensure(context.image, context.auth),
                create=lambda spec: self._create_step(context, spec),
                name=f"{self._prefix}-{context.id}",
                workdirs=tuple(dict.fromkeys(step.workdir for step in steps)),
                users=tuple(step.user for step in steps if step.user),
            )
        return self._shared[context.id]

    async def _start_own(self, context: Context, command: Command) -> Running:
        """The command is the container's own process."""
        name = f"{self._prefix}-{context.id}"
        if command.is_resumed:
            self._made.add(name)
            return await self._found(name, command)
        await self._runtime.images.ensure(context.image, context.auth)
        spec = policy.ContainerSpec(
            image=context.image,
            entrypoint=command.entrypoint if command.script is None else script_argv(command.script)[:1],
            command=command.command if command.script is None else script_argv(command.script)[1:],
            env=command.env,
            workdir=command.workdir,
            user=command.user or "",
        )
        container = await self._create_step(context, spec)
        if container is None:
            return await self._found(name, command)
        if command.archive:
            await self._engine.unpack(container, command.archive)
        return await OwnProcess.start(self._engine, self._log_of(container, command), command.launch)

    def _log_of(self, container: str, command: Command) -> ContainerLog:
        return ContainerLog(
            self._engine, container, self._notebook, command.key,
            loses_newlines=self._runtime.loses_newlines, outlives_engine=self._runtime.log_driver != "local",
        )  # fmt: skip

    async def _found(self, name: str, command: Command) -> Running:
        """The container that an agent before this one made."""
        known = await self._engine.inspect(name)
        if known is None:
            raise ExecutionError(FailureClass.LOST, "its container is gone: something other than Pistage removed it")
        return OwnProcess(self._engine, self._log_of(known["Id"], command), None)

    async def _create_step(self, context: Context, spec: policy.ContainerSpec) -> str | None:
        """Make a context's container; its id, or None where an agent before this one has made it already."""
        mounts, vetted = self._mounts(context)
        mounts += await self._programs.mounts(context)
        devices = await self._gpus.of(context)
        spec = replace(
            spec,
            gpus=devices,
            image=context.image,
            labels={"pistage.context": context.id},
            networks=self._networks(context),
            mounts=mounts,
            resources=context.resources,
        )
        return await self._create(f"{self._prefix}-{context.id}", spec, context.auth, vetted)

    async def _create_service(self, suffix: str, spec: policy.ContainerSpec) -> str | None:
        return await self._create(f"{self._prefix}-{suffix}", spec, None, ())

    async def _create(
        self, name: str, spec: policy.ContainerSpec, auth: RegistryAuth | None, vetted: Sequence[str]
    ) -> str | None:
        self._made.add(name)
        return await self._create_as(name, spec, auth, vetted)

    async def _create_as(
        self, name: str, spec: policy.ContainerSpec, auth: RegistryAuth | None, vetted: Sequence[str]
    ) -> str | None:
        """Make a container that whoever asks removes himself."""
        spec = replace(
            spec,
            env=self._gpus.container_environment(spec.env, spec.gpus),
            labels=self._labels | dict(spec.labels),
            log_driver=self._runtime.log_driver,
        )
        body = spec.render()
        policy.refuse_unless_allowed(body, vetted_binds=vetted)
        for _ in range(2):
            try:
                container = await self._runtime.whole(self._engine.create(name, body))
                break
            except EngineError as error:
                match error.status:
                    case 404:
                        # The image was there a moment ago, and somebody removed it.
                        self._runtime.images.forget(spec.image)
                        await self._runtime.images.ensure(spec.image, auth)
                    case 409 if await self._was_started(name):
                        return None
                    case 409:
                        # Nobody knows how far its making came; as it never ran, it is made anew.
                        await self._engine.remove(name)
                    case _:
                        raise
        else:
            raise EngineError(409, f"the engine would not make container {name}")
        for network, aliases in spec.networks[1:]:
            # Engines before API 1.44 take one network at creation; the others are joined before the start.
            await self._runtime.objects.join(network, container, aliases)
        return container

    async def _was_started(self, name: str) -> bool:
        known = await self._engine.inspect(name)
        return known is not None and known["State"]["Status"] != "created"

    def _networks(self, context: Context) -> list[tuple[str, Sequence[str]]]:
        names = {
            network.name: policy.physical_network(network, self._assign.run_id, index)
            for index, network in enumerate(self._assign.networks)
        }
        joined: list[tuple[str, Sequence[str]]] = [
            (_declared(names, attachment.network, "network"), attachment.aliases) for attachment in context.networks
        ]
        if self._assign.task.services:
            joined.append((self._prefix, ()))
        return joined

    def _mounts(self, context: Context) -> tuple[list[policy.VolumeMount], tuple[str, ...]]:
        """The context's mounts by physical names, and the binds among them, which the policy has vetted."""
        names = {
            volume.name: policy.physical_volume(volume, self._assign.run_id, index)
            for index, volume in enumerate(self._assign.volumes)
        }
        mounts, vetted = [], []
        for mount in context.mounts:
            if mount.kind == "bind":
                source = self._runtime.binds.pin(self._assign.attempt_id, mount.source)
                vetted.append(source)
            else:
                source = _declared(names, mount.source, "volume")
            mounts.append(
                policy.VolumeMount(
                    source=source, target=mount.target, is_read_only=mount.is_read_only, is_bind=mount.kind == "bind"
                )
            )
        return mounts, tuple(vetted)

    def retire(self, context: Context) -> None:
        """See `Place`."""
        name = f"{self._prefix}-{context.id}"
        if name not in self._made:
            self._gpus.give_back(context)
        elif name not in self._removals:
            self._removals[name] = removal = self._runtime.in_background(name, self._notebook)
            removal.add_done_callback(lambda gone: self._retired(context, gone))

    def _retired(self, context: Context, gone: asyncio.Task[bool]) -> None:
        if not gone.cancelled() and gone.result():
            self._gpus.give_back(context)

    async def kill(self) -> None:
        """See `Place`: whole containers, at once, so that nothing in a shared one is spared."""
        with translated():
            names = await self._names()
            kills = (self._engine.kill(name, "SIGKILL") for name in names)
            for outcome in await asyncio.gather(*kills, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome

    async def _names(self) -> set[str]:
        """Every container of the attempt, also what an agent before this one made."""
        names = set(self._made)
        if self._notebook.is_inherited:
            found = await self._engine.listed("containers", [f"pistage.attempt={self._assign.attempt_id}"])
            names |= {str(container["Id"]) for container in found}
        return names

    async def close(self) -> None:
        """See `Place`: what is made while this goes on is left to the next call, which asks for all of it again."""
        await self._notebook.flush()
        with translated():
            removals = dict(self._removals)
            if removals:
                await asyncio.wait(removals.values())
            names = await self._names()
            removed = {name for name, task in removals.items() if not task.cancelled() and task.result()}
            for name in names - removed:
                await self._engine.remove(name)
            if self._assign.task.services:
                await self._runtime.objects.release({"attempt": self._assign.attempt_id})
        self._programs.let_go()
        self._runtime.binds.unpin(self._assign.attempt_id)
        self._gpus.give_all_back()


def _declared(names: Mapping[str, str], name: str, kind: str) -> str:
    """The physical name: what a plan does not declare could be the literal name of somebody else's."""
    if name not in names:
        raise ExecutionError(FailureClass.REFUSED, f"the plan declares no {kind} {name!r}")
    return names[name]


@contextmanager
def translated() -> Iterator[None]:
    """The engine's failures in the words of the runtimes' contract."""
    try:
        yield
    except EngineGoneError as gone:
        raise ExecutionError(FailureClass.LOST, f"the engine went away: {gone}") from None
    except EngineError as error:
        raise ExecutionError(FailureClass.FAILURE, error.message, exit_code=_exit_code(error)) from None


def _exit_code(error: EngineError) -> int | None:
    """The code a shell would give for what the engine says: 127 no such command, 126 one that cannot be executed."""
    if "no such file or directory" in error.message or "not found" in error.message:
        return 127
    return 126 if "permission denied" in error.message else None
