"""The verbs about masters: what they show of those that answer and those that do not, and what they refuse."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from pistage import raft
from pistage.cli.root import execute
from pistage.errors import Code, PistageError
from pistage.master.directories import locked
from pistage.master.store import DurableLog, Identity
from tests.cli.conftest import FakeMaster, Pistage

DEAD = "http://127.0.0.1:9"  # nothing listens on the port of `discard`


def cluster(url: str, **changed: Any) -> dict[str, Any]:
    """What master n1 at `url` says: it leads n2, a learner behind it, and n3, that nobody reaches."""
    said = {
        "cluster_id": "c", "group_id": "g", "node": "n1", "role": "leader", "leader": "n1", "leader_url": url,
        "term": 3, "last_index": 50, "last_term": 3, "applied_index": 50, "digest": "ab", "version": "0.1.0",
        "is_disk_full": False, "disk_free_bytes": 5 << 30,
        "masters": [
            {"id": "n1", "url": url, "role": "leader", "is_voter": True, "version": "0.1.0", "match_index": 50,
             "last_heard_ms": None},
            {"id": "n2", "url": None, "role": "learner", "is_voter": False, "version": None, "match_index": 20,
             "last_heard_ms": 100},
            {"id": "n3", "url": DEAD, "role": "follower", "is_voter": True, "version": "0.1.0", "match_index": 40,
             "last_heard_ms": 9000},
        ],
    }  # fmt: skip
    return said | changed


class Group(FakeMaster):
    """A master of a group, as far as these verbs need one."""

    def __init__(self) -> None:
        super().__init__()
        self.changed: dict[str, Any] = {}
        self.snapshot = b"state" * 1000
        self.digest = hashlib.sha256(self.snapshot).digest()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.text()
        path = request.path.removeprefix("/api/v1")
        self.requests.append((request.method, path, json.loads(body) if body else None))
        if self.refusal is not None:
            return web.json_response(self.refusal.to_problem(), status=self.refusal.http_status)
        match path:
            case "/cluster":
                return web.json_response(cluster(self.url, **self.changed))
            case "/cluster/transfer":
                return web.json_response({"leader": "n3", "leader_url": DEAD})
            case "/cluster/remove":
                left = [{"id": "n1", "is_voter": True}]
                return web.json_response({"removed": {"id": "n3", "url": DEAD}, "masters": left})
            case _:
                return web.Response(body=self.snapshot + self.digest)


@pytest.fixture
def new_master() -> FakeMaster:
    return Group()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_status_shows_who_answers_and_how_many_may_fail(
    pistage: Pistage, master: Group, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pistage("cluster", "status") == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert rows[0][:5] == ["MASTER", "URL", "ROLE", "VOTES", "VERSION"]
    assert rows[1][:7] == ["n1", master.url, "leader", "yes", "0.1.0", "50", "0"]
    assert rows[2][:7] == ["n2", "-", "learner", "no", "-", "20", "30"]
    assert rows[3][:7] == ["n3", DEAD, "follower", "yes", "0.1.0", "40", "10"]
    assert out.count("no: ") == 2
    assert f"of 2 masters that vote 1 must come back before anything can be decided; no answer from n2, {DEAD}" in err


@pytest.mark.parametrize(("fmt", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_status_is_data_too(pistage: Pistage, fmt: str, read: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert pistage("cluster", "status", "-o", fmt) == 0
    picture = read(capsys.readouterr().out)
    assert (picture["leader"], picture["voters"], picture["may_fail"]) == ("n1", 2, -1)
    assert [one["error"] is None for one in picture["masters"]] == [True, False, False]


def test_status_without_a_leader_is_what_the_one_asked_sees(
    pistage: Pistage, master: Group, capsys: pytest.CaptureFixture[str]
) -> None:
    master.changed = {"leader": None, "leader_url": None, "role": "follower"}
    assert pistage("cluster", "status") == 0
    assert capsys.readouterr().err.startswith("there is no leader; ")


def test_leadership_and_membership_are_changed_by_name(
    pistage: Pistage, master: Group, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pistage("cluster", "transfer") == 0
    assert pistage("cluster", "transfer", "n3") == 0
    assert pistage("cluster", "remove", "n3") == 0
    asked = [body for method, _, body in master.requests if method == "POST"]
    assert asked == [{"master": ""}, {"master": "n3"}, {"master": "n3"}]
    err = capsys.readouterr().err
    assert f"master n3 at {DEAD} leads" in err
    assert f"master n3 at {DEAD} is out; voters left: 1" in err


def test_a_wrong_token_is_4_and_a_refusal_is_told(
    pistage: Pistage, master: Group, capsys: pytest.CaptureFixture[str]
) -> None:
    master.refusal = PistageError(Code.UNAUTHENTICATED, "the cluster token is missing or wrong")
    for verb in (["status"], ["transfer"], ["remove", "n1"], ["snapshot", "f"]):
        assert pistage("cluster", *verb) == 4
    assert not Path("f").exists()
    assert capsys.readouterr().err.count("the cluster token is missing or wrong") == 4


def test_a_snapshot_arrives_whole_or_not_at_all(
    pistage: Pistage, master: Group, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "backup"
    assert pistage("cluster", "snapshot", str(file)) == 0
    assert file.read_bytes() == master.snapshot + master.digest
    assert file.stat().st_mode & 0o777 == 0o600
    master.digest = bytes(32)
    assert pistage("cluster", "snapshot", str(file)) == 7
    assert "the snapshot arrived damaged" in capsys.readouterr().err
    assert file.read_bytes()[-32:] != bytes(32)
    assert names(tmp_path) == ["backup"]
    assert pistage("cluster", "snapshot", str(tmp_path / "none" / "backup")) == 2
    assert "there is no directory" in capsys.readouterr().err


# --- on the machine of a master --------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def offline(verb: str, data: Path, *more: str, peers: str = DEAD) -> int:
    listen = ["--listen", "127.0.0.1:10", "--peers", peers, "--data-dir", str(data)]
    return execute(["cluster", verb, *listen, *more])


def whole(data: Path, group_id: str, node_id: str) -> None:
    """A master that is fine."""
    data.mkdir()
    identity = Identity(node_id=node_id, group_id=group_id, founders={node_id: DEAD})
    DurableLog.create(data / "raft.db", identity, raft.Base(config=raft.Config(voters=(node_id, "n9"))))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_what_joins_needs_peers_that_answer(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert offline("join", data, peers="") == 2
    assert "peers names no other master" in said(capsys)
    assert offline("join", data, peers="http://127.0.0.1:10") == 2  # itself
    assert "peers names no other master" in said(capsys)
    assert offline("join", data) == 7
    assert "none of the peers answers: " in said(capsys)
    assert not (data / "raft.db").exists()


def test_a_new_master_is_made_ready_and_made_once(
    master: Group, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert offline("join", data, peers=f"{master.url},{DEAD}") == 0
    assert "is ready" in said(capsys)
    log = DurableLog(data / "raft.db")
    made = log.identity
    assert (made.group_id, log.base.config.members) == ("g", ())
    log.close()
    assert offline("join", data, peers=master.url) == 0  # again, for it has not been started
    log = DurableLog(data / "raft.db")
    assert log.identity == made
    log.close()


def test_a_wrong_token_is_told_when_joining(master: Group, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    master.refusal = PistageError(Code.UNAUTHENTICATED, "the cluster token is missing or wrong")
    assert offline("join", data, peers=f"{DEAD},{master.url}") == 4
    assert "the cluster token is missing or wrong" in said(capsys)


@pytest.mark.parametrize("verb", ["join", "recover"])
def test_a_master_that_runs_is_left_alone(
    master: Group, data: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole(data, "g", "n1")
    with locked(data):
        assert offline(verb, data, peers=master.url) == 2
    assert "another master has" in said(capsys)


@pytest.mark.parametrize("verb", [("join",), ("recover", "--force-new")])
def test_a_directory_of_something_else_is_left_alone(
    master: Group, data: Path, verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    data.mkdir()
    (data / "photos").mkdir()
    assert offline(verb[0], data, *verb[1:], peers=master.url) == 2
    assert "is not the directory of a master: it holds photos" in said(capsys)
    assert names(data) == ["photos"]


def test_a_whole_master_is_replaced_only_where_that_is_said(
    master: Group, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole(data, "g", "n1")
    (data / "logs").mkdir()
    assert offline("join", data, peers=master.url) == 2
    assert "which is whole, and a member of the group" in said(capsys)
    assert offline("join", data, "--replace", peers=master.url) == 0
    (aside,) = data.glob("damaged-*")
    assert (aside / "raft.db").exists()
    assert str(aside) in said(capsys)
    assert (data / "logs").exists()


def test_one_of_another_group_is_not_brought_into_this_one_by_mistake(
    master: Group, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole(data, "another", "n1")
    assert offline("join", data, peers=master.url) == 2
    assert "of another group of masters" in said(capsys)
    assert offline("join", data, "--replace", peers=master.url) == 0


def test_one_that_the_group_has_removed_comes_back_without_asking(master: Group, data: Path) -> None:
    whole(data, "g", "n7")
    assert offline("join", data, peers=master.url) == 0


def test_recovery_is_explained_and_refused_unless_it_is_meant(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole(data, "g", "n1")
    before = names(data)
    assert offline("recover", data) == 2
    told = said(capsys)
    assert "of 2 that vote" in told
    assert "Changes that the others had made without it are lost" in told
    assert "--force-new" in told
    assert not list(data.glob("before-*"))
    assert set(before) <= set(names(data))
    assert offline("recover", data, "--force-new") == 0
    assert "a group of its own" in said(capsys)
    log = DurableLog(data / "raft.db")
    assert log.identity.group_id != "g"
    assert log.base.config.voters == (log.identity.node_id,)
    log.close()


def test_nothing_is_recovered_from_nothing_from_a_living_group_or_behind_another(
    master: Group, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert offline("recover", data, "--force-new") == 5
    assert "holds no master" in said(capsys)
    assert not data.exists()
    whole(data, "g", "n1")
    assert offline("recover", data, "--force-new", peers=master.url) == 2
    assert "the group is alive" in said(capsys)
    master.changed = {"leader": None}
    assert offline("recover", data, "--force-new", peers=master.url) == 2
    assert "is further: its log ends at 50, this one's at 0" in said(capsys)
    master.changed = {"leader": None, "last_index": 0, "last_term": 0}
    assert offline("recover", data, "--force-new", peers=master.url) == 0


def test_a_damaged_master_is_not_recovered(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole(data, "g", "n1")
    with (data / "raft.db").open("r+b") as file:
        file.truncate(4096)
    assert offline("recover", data, "--force-new") == 7
    told = said(capsys)
    assert "raft.db is damaged" in told
    assert "another master that survived" in told


def test_a_snapshot_is_restored_into_an_empty_directory_only(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "backup").write_bytes(b"no state")
    assert offline("restore", data, str(tmp_path / "missing")) == 2
    assert offline("restore", data, str(tmp_path / "backup")) == 7
    told = said(capsys)
    assert "backup has no check sum" in told
    assert "backup is no snapshot" in told
    assert names(data) == ["lock"]
    (tmp_path / "backup").write_bytes(bytes(512 + 32))
    assert offline("restore", data, str(tmp_path / "backup")) == 7
    assert "its check sum is wrong" in said(capsys)
    whole(tmp_path / "used", "g", "n1")
    assert offline("restore", tmp_path / "used", str(tmp_path / "backup")) == 2
    assert "is not empty: it holds raft.db" in said(capsys)


def test_a_master_that_others_cannot_reach_is_not_made(
    master: Group, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert offline("join", data, "--listen", "0.0.0.0:10", peers=master.url) == 2
    assert "set advertise" in said(capsys)
