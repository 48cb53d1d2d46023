"""The GPUs of one attempt: each of its contexts has its own for as long as it lasts, whatever becomes of the agent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from pistage.agent import gpus
from pistage.agent.gpus import Gpu, GpuPool
from pistage.agent.runtimes.base import ExecutionError, Notebook
from pistage.core.plan import Context, FailureClass

_NOTE = "gpus:"
#: What a vendor's container runtime heeds when it is the engine's default: who sets it chooses devices.
_CHOOSES_DEVICES = frozenset({"NVIDIA_VISIBLE_DEVICES", "AMD_VISIBLE_DEVICES"})


class AttemptGpus:
    """Takes from the agent's pool, and notes what it got before anything uses it."""

    def __init__(self, pool: GpuPool, attempt_id: str, notebook: Notebook) -> None:
        self._pool = pool
        self._attempt_id = attempt_id
        self._notebook = notebook
        self._turns: dict[str, asyncio.Lock] = {}

    async def of(self, context: Context) -> tuple[Gpu, ...]:
        """The context's devices: those it has, else as many as it asks for, once they are free."""
        async with self._turns.setdefault(context.id, asyncio.Lock()):  # its steps may ask at once, and share them
            return await self._held_or_taken(context)

    async def _held_or_taken(self, context: Context) -> tuple[Gpu, ...]:
        holder = self._holder(context.id)
        if (held := self._pool.held_by(holder)) is not None:
            return held
        if context.resources.gpus <= 0:
            return ()
        try:
            taken = await self._pool.take(holder, context.resources.gpus)
        except ValueError as error:
            raise ExecutionError(FailureClass.REFUSED, str(error)) from None
        self._notebook.write(_NOTE + context.id, [gpu.id for gpu in taken])
        return taken

    def environment(self, taken: tuple[Gpu, ...]) -> Mapping[str, str]:
        """What tells a plain process which devices are its own."""
        return gpus.environment_of(taken, self._pool.vendor)

    def container_environment(self, env: Mapping[str, str], taken: Sequence[Gpu]) -> Mapping[str, str]:
        """`env` of a container that has `taken`, without the say of the job, or of its image, in which those are."""
        own = {name: value for name, value in env.items() if name not in _CHOOSES_DEVICES}
        if self._pool.vendor != "nvidia":
            return own
        return own | {"NVIDIA_VISIBLE_DEVICES": ",".join(gpu.id for gpu in taken) or "void"}

    def give_back(self, context: Context) -> None:
        """Nothing of the context is left."""
        self._pool.give_back(self._holder(context.id))

    def give_all_back(self) -> None:
        """Nothing of the attempt is left."""
        for holder in self._pool.holders(self._holder("")):
            self._pool.give_back(holder)

    def _holder(self, context_id: str) -> str:
        return f"{self._attempt_id}/{context_id}"


def claim(pool: GpuPool, attempt_id: str, notebook: Notebook, contexts: set[str]) -> None:
    """What an agent before this one gave to these contexts is still theirs."""
    for key, ids in notebook.notes(_NOTE):
        if (context_id := key.removeprefix(_NOTE)) in contexts:
            pool.claim(f"{attempt_id}/{context_id}", ids)
