"""The state machine where webhooks make runs: each delivery once, for as long as it is known, and what is kept."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from pistage.core import commands_of_triggers as t
from pistage.core import limits, machine
from pistage.core.plan import Concurrency, Overflow
from pistage.core.triggers.settings import Webhook
from pistage.errors import Code
from tests.core.plans import a_plan
from tests.core.test_machine import Cluster

HOUR = 3_600_000
KNOWN_MS = 2 * HOUR + 60_000


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.db.close()


def put(cluster: Cluster, name: str = "build", **said: Any) -> machine.Outcome:
    given = {"secret_if_new": "made up", "webhook": Webhook(window_ms=HOUR), "source": "text"} | said
    return cluster.apply(
        t.PutWebhook(at=cluster.now, id=f"id-{name}", project="default", owner="o", name=name, **given)
    )


def fence(cluster: Cluster, name: str = "build") -> int:
    return int(cluster.db.execute("SELECT fence FROM webhook WHERE name = ?", (name,)).fetchone()[0])


def deliver(cluster: Cluster, *keys: str, run_id: str = "r1", **said: Any) -> machine.Outcome:
    given = {"webhook_id": "id-build", "plan": a_plan(name="build"), "at": cluster.now} | said
    given = {"fence": given.get("fence") or fence(cluster)} | given
    return cluster.apply(t.DeliverWebhook(keys=keys, run_id=run_id, **given))


def secret(cluster: Cluster) -> str:
    return str(cluster.db.execute("SELECT secret FROM webhook").fetchone()[0])


def runs(cluster: Cluster) -> int:
    return int(cluster.db.execute("SELECT COUNT(*) FROM run").fetchone()[0])


def test_a_delivery_makes_one_run_that_says_what_started_it(cluster: Cluster) -> None:
    put(cluster)
    made = deliver(cluster, "signed", "named")
    assert made.value == {"run_id": "r1", "number": 1, "is_new": True}
    row = cluster.db.execute("SELECT json_extract(started_by, '$.kind', '$.name'), owner, source FROM run").fetchone()
    assert row == ('["webhook","build"]', "o", "text")
    for keys in (("signed",), ("named",), ("other", "named"), ("signed", "other")):
        again = deliver(cluster, *keys, run_id="r2")
        assert again.value == {"run_id": "r1", "number": 1, "is_new": False}
    assert deliver(cluster, "other", run_id="r2").value["is_new"] is True
    assert runs(cluster) == 2


def test_a_delivery_is_known_for_twice_its_window_and_then_forgotten(cluster: Cluster) -> None:
    put(cluster)
    deliver(cluster, "a")
    cluster.now += KNOWN_MS
    assert deliver(cluster, "a", run_id="r2").value["is_new"] is False
    cluster.now += 1
    assert deliver(cluster, "b", run_id="r3").value["is_new"] is True
    assert cluster.db.execute("SELECT key FROM webhook_delivery").fetchall() == [("b",)]
    assert deliver(cluster, "a", run_id="r4").value["is_new"] is True


def test_more_is_forgotten_than_is_remembered(cluster: Cluster) -> None:
    put(cluster)
    for number in range(40):
        deliver(cluster, f"{number}", run_id=f"r{number}")
    cluster.now += KNOWN_MS + 1
    for number in range(40, 44):
        deliver(cluster, f"{number}", run_id=f"r{number}")
    assert cluster.db.execute("SELECT COUNT(*) FROM webhook_delivery").fetchone() == (4,)


def test_webhooks_do_not_know_each_others_deliveries(cluster: Cluster) -> None:
    put(cluster)
    put(cluster, "other")
    deliver(cluster, "a")
    other = deliver(cluster, "a", run_id="r2", webhook_id="id-other", fence=fence(cluster, "other"))
    assert other.value["is_new"] is True


def test_who_knows_an_older_webhook_makes_nothing(cluster: Cluster) -> None:
    put(cluster)
    old = fence(cluster)
    put(cluster, source="another")
    for outcome in (deliver(cluster, "a", fence=old), deliver(cluster, "a", webhook_id="gone", fence=old)):
        assert outcome.error is not None
        assert outcome.error.code is Code.UNAVAILABLE
    assert runs(cluster) == 0


def test_a_run_that_its_group_refuses_is_not_remembered(cluster: Cluster) -> None:
    put(cluster)
    plan = replace(a_plan(name="build"), concurrency=Concurrency(group="g", limit=1, overflow=Overflow.REFUSE))
    deliver(cluster, "a", plan=plan)
    refused = deliver(cluster, "b", run_id="r2", plan=plan)
    assert refused.error is not None
    assert refused.error.code is Code.CONFLICT
    cluster.db.execute("UPDATE run SET state = 'succeeded'")
    assert deliver(cluster, "b", run_id="r2", plan=plan).value["is_new"] is True


def test_a_secret_stays_until_another_is_given(cluster: Cluster) -> None:
    assert put(cluster).value == {"is_new": True}
    assert secret(cluster) == "made up"
    assert put(cluster, secret_if_new="another").value == {"is_new": False}
    assert secret(cluster) == "made up"
    put(cluster, secret="given")
    assert secret(cluster) == "given"
    cluster.apply(t.DeleteWebhook(at=1, project="default", name="build"))
    put(cluster, secret="given at once")
    assert secret(cluster) == "given at once"


def test_a_secret_is_not_in_what_a_program_prints_of_a_command() -> None:
    command = t.PutWebhook(
        at=1, id="i", project="p", owner="o", name="n", webhook=Webhook(), secret="hush", secret_if_new="psst"
    )
    assert "hush" not in repr(command)
    assert "psst" not in repr(command)


def test_a_webhook_that_is_set_again_knows_its_deliveries_and_one_that_is_removed_does_not(cluster: Cluster) -> None:
    put(cluster)
    deliver(cluster, "a")
    put(cluster, source="another")
    assert deliver(cluster, "a", run_id="r2").value["is_new"] is False
    cluster.apply(t.DeleteWebhook(at=1, project="default", name="build"))
    assert cluster.db.execute("SELECT COUNT(*) FROM webhook_delivery").fetchone() == (0,)
    assert runs(cluster) == 1
    gone = cluster.apply(t.DeleteWebhook(at=1, project="default", name="build"))
    assert gone.error is not None
    assert gone.error.code is Code.NOT_FOUND


def test_there_are_only_so_many(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WEBHOOKS_MAX", 2)
    put(cluster)
    put(cluster, "other")
    refused = put(cluster, "third")
    assert refused.error is not None
    assert refused.error.code is Code.CONFLICT
    assert put(cluster).error is None
