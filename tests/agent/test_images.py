"""Images: asked for once, pulled once, and failures without secrets."""

import asyncio
from typing import Any

import pytest

from pistage.agent.runtimes.base import ExecutionError
from pistage.agent.runtimes.docker_images import Images
from pistage.agent.runtimes.engine import EngineError
from pistage.core.plan import FailureClass, RegistryAuth


class Registry:
    """An engine with a registry behind it."""

    def __init__(self, *, has: set[str], can_have: set[str]) -> None:
        self.has = has
        self.can_have = can_have
        self.looks: list[str] = []
        self.pulls: list[str] = []

    async def image(self, name: str) -> dict[str, Any] | None:
        self.looks.append(name)
        return {"Id": name} if name in self.has else None

    async def pull(self, name: str, auth: RegistryAuth | None, *, timeout_s: float) -> None:
        self.pulls.append(name)
        await asyncio.sleep(0)
        if name not in self.can_have:
            raise EngineError(404, f"denied for {auth.password if auth else None}")
        self.has.add(name)


def images(registry: Registry) -> Images:
    return Images(registry, timeout_s=1)  # type: ignore[arg-type]


async def test_an_image_that_is_there_is_not_pulled_and_not_asked_for_again() -> None:
    registry = Registry(has={"a"}, can_have=set())
    known = images(registry)
    assert await known.ensure("a", None) == await known.ensure("a", None) == {"Id": "a"}
    assert (registry.looks, registry.pulls) == (["a"], [])


async def test_ten_who_ask_at_once_are_one_pull() -> None:
    registry = Registry(has=set(), can_have={"a"})
    known = images(registry)
    await asyncio.gather(*(known.ensure("a", None) for _ in range(10)))
    assert registry.pulls == ["a"]


async def test_one_who_gives_up_leaves_the_pull_to_the_next() -> None:
    registry = Registry(has=set(), can_have={"a"})
    known = images(registry)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(known.ensure("a", None))
        second = group.create_task(known.ensure("a", None))
        await asyncio.sleep(0)
        first.cancel()
    assert second.result() == {"Id": "a"}


async def test_a_password_is_not_in_the_reason() -> None:
    auth = RegistryAuth(username="u", password="s3cret")
    with pytest.raises(ExecutionError) as caught:
        await images(Registry(has=set(), can_have=set())).ensure("a", auth)
    assert caught.value.failure is FailureClass.PULL
    assert caught.value.reason == "image a could not be pulled: denied for ***"
