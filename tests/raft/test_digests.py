"""States that differ are found, also while neither master is ever where the other was when it said so."""

from dataclasses import replace

import pytest

from pistage import raft
from pistage.raft import messages as m
from pistage.raft.digests import Digests
from tests.raft.group import SETTINGS, Group, append, messages, one


def beat(applied: int, digest: bytes, same_at: int = 0) -> raft.Recv:
    return raft.Recv(
        message=m.Heartbeat(
            src="b", dst="a", term=2, commit=0, round=0, applied=applied, digest=digest, same_at=same_at
        )
    )


def is_different(node: raft.Node) -> bool:
    """Whether it says so when it is asked, without being shown anything new."""
    answers = messages(node.step(beat(0, b"")))
    return any(isinstance(answer, m.HeartbeatResp) and answer.differs for answer in answers)


def fatal(actions: list[raft.Action]) -> raft.Fatal | None:
    return next((action for action in actions if isinstance(action, raft.Fatal)), None)


def follower(entries: int, *, digests_kept: int = 256) -> raft.Node:
    """It has so many entries, knows that they are committed, and has applied none."""
    node = one("a", term=2, settings=replace(SETTINGS, digests_kept=digests_kept))
    node.step(append("b", "a", 2, (0, 0), [2] * entries, commit=entries))
    node.step(raft.Durable(seq=1, term=2, last_index=entries))
    return node


@pytest.mark.parametrize(("digest", "differs"), [(b"ours", False), (b"theirs", True), (b"", False)])
def test_a_follower_says_whether_its_state_is_the_leaders(digest: bytes, differs: bool) -> None:
    node = follower(1)
    node.step(raft.Applied(index=1, digests=(b"ours",)))
    (answer,) = messages(node.step(beat(1, digest)))
    assert isinstance(answer, m.HeartbeatResp)
    assert answer.differs is differs


def differing() -> raft.Node:
    node = follower(3)
    node.step(raft.Applied(index=3, digests=(b"1", b"ours", b"3")))
    node.step(beat(2, b"theirs"))
    return node


def test_a_follower_that_differs_from_a_majority_is_damaged() -> None:
    node = differing()
    assert fatal(node.step(beat(3, b"theirs", same_at=1))) is None
    stop = fatal(node.step(beat(3, b"theirs", same_at=2)))
    assert stop is not None
    assert stop.is_state_damaged


def test_a_follower_that_differs_for_long_stops_without_knowing_who_is_damaged() -> None:
    node = differing()
    for _ in range(SETTINGS.election_ticks - 1):
        node.step(raft.Tick())
        assert fatal(node.step(beat(3, b"theirs"))) is None
    node.step(raft.Tick())
    stop = fatal(node.step(beat(3, b"theirs")))
    assert stop is not None
    assert not stop.is_state_damaged


def test_a_follower_whose_leader_has_stopped_does_not_stop_as_well() -> None:
    node = differing()
    for _ in range(3 * SETTINGS.election_ticks):
        assert fatal(node.step(raft.Tick())) is None
    assert node.term > 2 or node.role is raft.RoleName.PRE_CANDIDATE
    assert node.digests.differs_at is None


def test_a_difference_is_forgotten_with_the_state_that_a_snapshot_replaces() -> None:
    node = differing()
    node.step(raft.Recv(message=m.SnapOffer(src="b", dst="a", term=2, index=9)))
    node.step(raft.SnapInstalled(base=raft.Base(index=9, term=2), digest=b"nine"))
    assert not is_different(node)
    assert fatal(node.step(beat(9, b"nine", same_at=9))) is None
    assert node.digests.same_at == 9
    assert node.digests.at(3) == b""


def test_the_state_that_a_node_starts_with_is_compared_before_anything_is_applied() -> None:
    node = one("a", term=2, log=[1, 1], applied=2, digest=b"ours")
    node.step(beat(2, b"theirs"))
    assert is_different(node)


def test_what_a_follower_is_shown_before_it_gets_there_is_compared_when_it_does() -> None:
    node = follower(9)
    node.step(raft.Applied(index=3, digests=(b"1", b"2", b"3")))
    node.step(beat(5, b"theirs"))
    node.step(raft.Applied(index=4, digests=(b"4",)))
    assert not is_different(node)
    node.step(raft.Applied(index=7, digests=(b"ours", b"6", b"7")))
    assert is_different(node)


def test_a_leader_that_is_always_ahead_is_compared_with_all_the_same() -> None:
    """The newest would never be reached: each beat shows one that is further away."""
    node = follower(40)
    found = []
    for turn in range(1, 10):
        node.step(beat(turn * 4, b"theirs"))
        node.step(raft.Applied(index=turn, digests=(b"ours",)))
        found.append(is_different(node))
    assert found.index(True) == 3


def test_a_leader_that_applies_slowly_is_compared_with_as_long_as_our_digests_are_kept() -> None:
    node = follower(20, digests_kept=4)
    node.step(raft.Applied(index=9, digests=(b"ours",) * 9))
    node.step(beat(5, b"theirs"))
    assert not is_different(node)
    node.step(beat(6, b"theirs"))
    assert is_different(node)


def test_without_a_digest_on_either_side_there_is_nothing_to_compare() -> None:
    node = follower(9)
    node.step(beat(2, b""))
    node.step(beat(3, b"theirs"))
    node.step(raft.Applied(index=4))
    assert not is_different(node)
    node.step(beat(6, b"theirs"))  # what was shown before is past, and makes room
    node.step(raft.Applied(index=6, digests=(b"5", b"ours")))
    assert is_different(node)


def test_digests_are_kept_for_a_while_only() -> None:
    digests = Digests(kept=3)
    for index in range(10):
        digests.applied(index, (b"d",), 0)
    assert [index for index in range(12) if digests.at(index)] == [7, 8, 9]
    digests.applied(19, (b"e",) * 10, 0)
    assert [index for index in range(30) if digests.at(index)] == [17, 18, 19]


def stopped_under_load(group: Group, damaged: str, batch: int = 1) -> dict[str, tuple[int, bool]]:
    """Who stopped, how many ticks after a state went wrong, and whether it knows that it is the one; messages never
    all arrive before the next tick."""
    group.elect("a")
    stopped: dict[str, tuple[int, bool]] = {}
    for turn in range(80):
        if turn == 20:
            group.members[damaged].digest_of = lambda entry: b"damaged %d" % entry.index
        for name in group.members:
            group.step(name, raft.Tick())
            if (stop := fatal(group.members[name].others)) is not None:
                stopped.setdefault(name, (turn - 20, stop.is_state_damaged))
        for name in group.members:
            if group[name].leadership is not None and name not in stopped:
                group.propose(name, *(f"{turn}.{n}" for n in range(batch)))
        for message in [group.wire.pop(0) for _ in range(min(14, len(group.wire)))]:
            if (message.src, message.dst) not in group.cut:
                group.step(message.dst, raft.Recv(message=message))
    return stopped


SOON = 5 * SETTINGS.heartbeat_ticks


@pytest.mark.parametrize("batch", [1, 3, 7])
@pytest.mark.parametrize("damaged", ["a", "c"])
def test_a_state_that_is_damaged_stops_its_node_under_steady_load_and_no_other(damaged: str, batch: int) -> None:
    group = Group("a", "b", "c")
    stopped = stopped_under_load(group, damaged, batch)
    assert list(stopped) == [damaged]
    after, is_known = stopped[damaged]
    assert (after <= SOON, is_known) == (True, True)
    assert any(group[name].leadership is not None for name in {"a", "b", "c"} - {damaged})


@pytest.mark.parametrize("damaged", ["a", "b"])
def test_with_two_voters_there_is_no_telling_and_the_leader_stops(damaged: str) -> None:
    stopped = stopped_under_load(Group("a", "b"), damaged)
    assert [(name, is_known) for name, (_, is_known) in stopped.items()] == [("a", False)]


@pytest.mark.parametrize("damaged", ["a", "b"])
def test_while_a_third_is_away_there_is_no_telling_and_the_follower_stops(damaged: str) -> None:
    group = Group("a", "b", "c")
    group.isolate("c")
    stopped = stopped_under_load(group, damaged)
    assert [(name, is_known) for name, (_, is_known) in stopped.items()] == [("b", False)]
    assert stopped["b"][0] <= SETTINGS.election_ticks + SOON


def test_a_learner_that_differs_proves_nothing_against_its_leader() -> None:
    stopped = stopped_under_load(Group("a", learners="l"), "l")
    assert [(name, is_known) for name, (_, is_known) in stopped.items()] == [("l", True)]
