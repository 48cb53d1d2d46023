"""Where steps run: in containers, in a sandbox, or as plain processes, behind one contract."""

from __future__ import annotations

from collections.abc import Callable

from pistage.agent.runtimes.base import Runtime
from pistage.agent.runtimes.docker import DockerRuntime
from pistage.agent.runtimes.host import HostRuntime
from pistage.agent.runtimes.sandbox import SandboxRuntime
from pistage.config import AgentConfig
from pistage.errors import Code, PistageError


def create(settings: AgentConfig, agent_id: Callable[[], str]) -> Runtime:
    """The runtime that the configuration names; PistageError `usage` if it is not allowed."""
    match settings.runtime:
        case "docker":
            return DockerRuntime(settings, agent_id)
        case "sandbox":
            return SandboxRuntime(settings)
        case "host":
            if not settings.allow_host_runtime:
                raise PistageError(
                    Code.USAGE,
                    "the host runtime lets every pipeline run commands as this user, on this machine",
                    hint="set allow_host_runtime if that is what you want",
                )
            return HostRuntime(settings)
