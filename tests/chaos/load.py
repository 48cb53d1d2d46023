"""A stream of submissions at a rate, each under a key of its own, and what came of every one of them.

Each is made by the client that users have: it turns to another master when one is away, and asks again under the key.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import re
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pistage.client import Client
from pistage.errors import PistageError
from tests.chaos.group import TOKEN

NAME: Final = "Chaos"
PATIENCE_S: Final = 90.0
_URL: Final = re.compile(r"http://[\w.:]+")


def definition(side_file: Path) -> str:
    """A run that leaves one line for each time that it is really carried out: key, run, fence of the attempt."""
    line = r'printf "%s %s %s\n" "$PISTAGE_PARAM_KEY" "$PISTAGE_RUN_ID" "$PISTAGE_FENCE"'
    return json.dumps(
        {"name": NAME, "with": {"key": None}, "image": "busybox", "retry": 0, "run": f"{line} >> '{side_file}'"}
    )


@dataclass(slots=True)
class Submission:
    """What was asked for under a key and what was answered, if it was; times are of the monotonic clock."""

    key: str
    asked_at: float
    answered_at: float | None = None
    run_id: str | None = None
    refusal: str = ""


class Tries(logging.Handler):
    """Counts what a client tried in vain before it had its answer, by reason."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.reasons: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg.startswith("asked in vain"):
            reason = _URL.sub("URL", str(record.args[-1])) if isinstance(record.args, tuple) else ""
            reason = reason.partition(" (")[0].replace("URL, ", "")
            self.reasons[reason] = self.reasons.get(reason, 0) + 1


@dataclass(slots=True)
class Load:
    """`run` submits until `count` are made or `stop` is called, and returns once each is answered or given up."""

    urls: Sequence[str]
    side_file: Path
    rate: float
    chance: random.Random
    count: int | None = None
    submissions: list[Submission] = field(default_factory=list)
    tries: Tries = field(default_factory=Tries)
    _is_over: bool = False
    _free: list[Client] = field(default_factory=list)

    def stop(self) -> None:
        self._is_over = True

    async def run(self) -> None:
        body: dict[str, object] = {"definition": definition(self.side_file)}
        logger = logging.getLogger("pistage.client.transport")
        logger.addHandler(self.tries)
        level = logger.level
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        begun = time.monotonic()
        try:
            async with AsyncExitStack() as clients, asyncio.TaskGroup() as group:
                while not self._is_over and (self.count is None or len(self.submissions) < self.count):
                    number = len(self.submissions)
                    await asyncio.sleep(max(0.0, begun + number / self.rate - time.monotonic()))
                    submission = Submission(f"key-{number}", time.monotonic())
                    self.submissions.append(submission)
                    group.create_task(self._submit(clients, submission, body))
        finally:
            logger.removeHandler(self.tries)
            logger.setLevel(level)
            logger.propagate = True

    async def _submit(self, clients: AsyncExitStack, submission: Submission, body: dict[str, object]) -> None:
        client = self._free.pop() if self._free else await self._new_client(clients)
        try:
            run = await client.submit_run(body | {"with": {"key": submission.key}}, request_key=submission.key)
            submission.run_id = run["id"]
            submission.answered_at = time.monotonic()
        except PistageError as refusal:
            submission.refusal = str(refusal)
        finally:
            self._free.append(client)

    async def _new_client(self, clients: AsyncExitStack) -> Client:
        """One more, that asks the masters in an order of its own."""
        urls = self.chance.sample(list(self.urls), len(self.urls))
        return await clients.enter_async_context(
            Client(urls, TOKEN, first_patience_s=PATIENCE_S, patience_s=PATIENCE_S)
        )

    @property
    def acknowledged(self) -> dict[str, str]:
        """Run by key."""
        return {one.key: one.run_id for one in self.submissions if one.run_id is not None}

    @property
    def refused(self) -> list[Submission]:
        """Those that were given up: whether they were made is not known."""
        return [one for one in self.submissions if one.run_id is None]

    def waits(self) -> list[float]:
        """Seconds from the question to the answer, sorted."""
        return sorted(one.answered_at - one.asked_at for one in self.submissions if one.answered_at is not None)

    def longest_gap(self) -> tuple[float, float]:
        """The longest time without any acknowledgement, in seconds, and when it began."""
        answers = sorted(one.answered_at for one in self.submissions if one.answered_at is not None)
        return max(((after - before, before) for before, after in itertools.pairwise(answers)), default=(0.0, 0.0))
