"""Three masters whose leader is killed again and again while runs end: each end is told, under one id."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.e2e.masters import Asking, a_group
from tests.e2e.processes import until
from tests.master.fake_receiver import a_receiver
from tests.master.fakes import HELLO_YAML

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ROUNDS, RUNS = 4, 25
SECRET = "a secret of tests"


async def send(ask: Asking, method: str, path: str, **given: Any) -> dict[str, Any]:
    """To whatever master answers, until one takes it."""

    async def asked() -> dict[str, Any] | None:
        url = ask.masters.urls[random.choice(list(ask.masters.running))]
        async with ask.session.request(method, url + path, **given) as response:
            assert response.status < 300 or response.status == 503, await response.text()
            return None if response.status == 503 else dict(await response.json())

    return dict(await until(asked))


async def end_a_run(ask: Asking, number: int) -> str:
    """One that waits for an agent, of which there is none, until it is cancelled."""
    run = await send(ask, "POST", "/api/v1/runs", data=HELLO_YAML, headers={"Idempotency-Key": f"k{number}"})
    await send(ask, "POST", f"/api/v1/runs/{run['id']}/cancel")
    return str(run["id"])


async def test_a_leader_that_is_killed_between_the_end_and_the_notice_loses_none(tmp_path: Path) -> None:
    rng = random.Random(5)
    taken: dict[str, set[bytes]] = defaultdict(set)
    answers: dict[int, int] = defaultdict(int)
    seen: set[str] = set()

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(rng.uniform(0.0, 0.3))  # a receiver at work, so that leaders fall with notices on their way
        delivery = request.headers["X-Pistage-Delivery"]
        is_first = delivery not in seen  # later tries are waited for long
        seen.add(delivery)
        status = 500 if is_first and rng.random() < 0.3 else 204
        answers[status] += 1
        if status == 204:
            taken[delivery].add(await request.read())
        return web.Response(status=status)

    async with (
        a_receiver(answer=answer) as receiver,
        a_group(tmp_path, PISTAGE_NOTICE_ALLOW="127.0.0.0/8") as (masters, ask),
    ):
        asked = {"url": receiver.url, "on": ["always"], "secret": SECRET}
        await send(ask, "PUT", "/api/v1/notices/ops", json=asked)
        ended: list[str] = []
        for number in range(ROUNDS):
            leader = await ask.leader()
            ended += await asyncio.gather(*(end_a_run(ask, number * RUNS + n) for n in range(RUNS)))
            masters.kill(leader)
            await ask.leader()
            masters.serve(leader)
        waiting = set(ended)
        async with asyncio.timeout(60):
            while waiting:
                for run_id in sorted(waiting):
                    listed = await send(ask, "GET", f"/api/v1/runs/{run_id}/notices")
                    (one,) = listed["items"]
                    assert one["state"] != "given_up", one
                    waiting -= {run_id} if one["state"] == "delivered" else set()
                await asyncio.sleep(0.2)  # nobody is told of that; other processes decide
        assert len(ended) == ROUNDS * RUNS == len(taken)
        assert taken.keys() == {f"{run_id}-1" for run_id in ended}
        assert all(len(bodies) == 1 for bodies in taken.values())
        assert all(got.is_signed_with(SECRET) for got in receiver.got)
        assert min(answers[204], answers[500]) > 0
        print(f"{len(receiver.got)} requests for {len(ended)} notices, {answers[500]} refused")
