"""Scripts in containers: their files unpacked into them, their packages in volumes of the agent that they read only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from pistage.agent import policy
from pistage.agent.packages import Packages
from pistage.agent.runtimes import programs
from pistage.agent.runtimes.base import Command, ExecutionError
from pistage.agent.runtimes.docker_images import Images
from pistage.agent.runtimes.engine import Engine, EngineError
from pistage.config import AgentConfig
from pistage.core import limits
from pistage.core.plan import Context, FailureClass, Program, RegistryAuth
from pistage.wire import Assign

#: Makes a container of that name, for whose image there are credentials, with binds that are vetted; the caller
#: removes it.
Create = Callable[[str, policy.ContainerSpec, RegistryAuth | None, Sequence[str]], Awaitable[str | None]]
_TAIL_LINES = 20
_IN_USE = 409


class DockerPackages:
    """The volumes with packages that an agent has in its engine; they outlive runs, so no run's labels are on them."""

    def __init__(self, engine: Engine, settings: AgentConfig, agent_id: Callable[[], str]) -> None:
        self._engine = engine
        self._agent_id = agent_id
        self.settings = settings
        self.shelf = Packages(settings.data_dir / "packages", self.removed)

    def volume_of(self, key: str) -> str:
        """The volume of a set of packages."""
        return f"pistage-packages-{self._agent_id()}-{key}"

    async def is_there(self, key: str) -> bool:
        """Whether the engine has the volume."""
        return await self._engine.volume(self.volume_of(key)) is not None

    def installer_of(self, key: str) -> str:
        """The container that fills it: of one name whoever asks, so that what a killed agent left of one is found."""
        return f"pistage-install-{self._agent_id()}-{key}"

    async def make(self, key: str) -> None:
        """Make it, empty; ExecutionError `lost` if one that may not be whole is in use."""
        await self._engine.remove(self.installer_of(key))
        if not await self.removed(key):
            raise ExecutionError(FailureClass.LOST, "packages that an agent before this one was at are still in use")
        body = {"Name": self.volume_of(key), "Labels": {"pistage.packages": self._agent_id()}}
        await self._engine.json("POST", "volumes/create", body=body)

    async def removed(self, key: str) -> bool:
        """Remove it; False if a container still has it."""
        try:
            await self._engine.json("DELETE", f"volumes/{self.volume_of(key)}")
        except EngineError as error:
            if error.status == _IN_USE:
                return False
            if error.status != 404:
                raise
        return True


class DockerPrograms:
    """Readies the scripts of one attempt."""

    def __init__(
        self, engine: Engine, images: Images, packages: DockerPackages, assign: Assign, *, create: Create
    ) -> None:
        self._engine = engine
        self._images = images
        self._packages = packages
        self._assign = assign
        self._create = create

    async def readied(self, context: Context, command: Command, program: Program) -> Command:
        """The command as words, and the archive of its files; of its requirements `mounts` sees to."""
        if not program.command:
            reason = f"no image is known for the language {program.language}, so this agent, which runs images, cannot"
            raise ExecutionError(FailureClass.REFUSED, reason)
        seen = f"{programs.ROOT}/{command.key}"
        packages = f"{programs.PACKAGES}/{await self._key(context, program)}" if program.requirements else ""
        words = programs.words_of(program, program.command, seen)
        return replace(
            command,
            program=None,
            entrypoint=tuple(words[:1]),
            command=tuple(words[1:]),
            env=programs.variables_of(program, command.env, packages),
            archive=programs.archive_of(program, seen, packages),
        )

    async def mounts(self, context: Context) -> list[policy.VolumeMount]:
        """The volumes with what the scripts of a context require, installed by now."""
        steps = [step for step in self._assign.task.steps() if step.context == context.id]
        found = {}
        for program in [step.program for step in steps if step.program is not None and step.program.requirements]:
            key = await self._key(context, program)
            if key not in found:
                await self._ensure(context, program, key)
                found[key] = policy.VolumeMount(
                    source=self._packages.volume_of(key), target=f"{programs.PACKAGES}/{key}", is_read_only=True
                )
        return list(found.values())

    def let_go(self) -> None:
        """The attempt uses no packages any more."""
        self._packages.shelf.let_go(self._assign.attempt_id)

    async def _key(self, context: Context, program: Program) -> str:
        image = await self._images.ensure(context.image, context.auth)
        source = programs.source_of(self._packages.settings, program)
        return programs.packages_key(program, [str(image.get("Id")), *program.command], source)

    async def _ensure(self, context: Context, program: Program, key: str) -> None:
        async def is_there() -> bool:
            return await self._packages.is_there(key)

        async def make() -> None:
            await self._packages.make(key)
            await self._install(context, program, key)

        await self._packages.shelf.ensure(key, self._assign.attempt_id, is_there=is_there, make=make)

    async def _install(self, context: Context, program: Program, key: str) -> None:
        """In a container of its own, which is given nothing of the document's: what it makes serves others, too."""
        source = programs.source_of(self._packages.settings, program)
        words = programs.install_words(
            program, program.command, source, packages=programs.PACKAGES, index=programs.INDEX
        )
        mounts = [policy.VolumeMount(source=self._packages.volume_of(key), target=programs.PACKAGES)]
        if source.packages is not None:
            path = str(source.packages.absolute())
            mounts.append(policy.VolumeMount(source=path, target=programs.INDEX, is_read_only=True, is_bind=True))
        spec = policy.ContainerSpec(
            image=context.image,
            entrypoint=words[:1],
            command=words[1:],
            env={"HOME": "/tmp"},
            workdir="/",
            user="0",
            labels={"pistage.context": context.id},
            mounts=mounts,
            resources=context.resources,
        )
        vetted = [mount.source for mount in mounts if mount.is_bind]
        # Its name is the set's: the next attempt that needs it installs it under the same one. So it is gone before the
        # key is given up, and closing an attempt's place leaves it alone.
        name = self._packages.installer_of(key)
        try:
            container = await self._create(name, spec, context.auth, vetted)
            assert container is not None, "one of this name was removed, and who makes another waits for the key"
            await self._run(container, program)
        finally:
            await self._engine.remove(name)

    async def _run(self, container: str, program: Program) -> None:
        try:
            async with asyncio.timeout(limits.PACKAGES_TIMEOUT_S):
                await self._engine.start(container)
                exit_code = await self._engine.wait(container)
        except TimeoutError:
            reason = f"its requirements were not installed within {limits.PACKAGES_TIMEOUT_S:g} s"
            raise ExecutionError(FailureClass.FAILURE, reason) from None
        if exit_code != 0:
            said = [data async for _, data in self._engine.logs(container, is_following=False, tail=_TAIL_LINES)]
            raise programs.failed_install(program, exit_code, b"".join(_untimed(data) for data in said))


def _untimed(message: bytes) -> bytes:
    """A message of an engine's log without the time before it."""
    return message.partition(b" ")[2]
