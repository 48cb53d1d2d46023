"""States that differ are found, also while neither master is ever where the other was when it said so."""

from dataclasses import replace

import pytest

from pistage import raft
from pistage.raft import messages as m
from pistage.raft.digests import Digests
from tests.raft.group import SETTINGS, Group, append, messages, one


def beat(applied: int, digest: bytes) -> raft.Recv:
    return raft.Recv(message=m.Heartbeat(src="b", dst="a", term=2, commit=0, round=0, applied=applied, digest=digest))


def is_halted(actions: list[raft.Action]) -> bool:
    return any(isinstance(action, raft.Fatal) and "differs" in action.reason for action in actions)


def follower(entries: int, *, digests_kept: int = 256) -> raft.Node:
    """It has so many entries, knows that they are committed, and has applied none."""
    node = one("a", term=2, settings=replace(SETTINGS, digests_kept=digests_kept))
    node.step(append("b", "a", 2, (0, 0), [2] * entries, commit=entries))
    node.step(raft.Durable(seq=1, term=2, last_index=entries))
    return node


def test_a_state_that_differs_from_the_leaders_stops_the_follower() -> None:
    node = follower(1)
    node.step(raft.Applied(index=1, digests=(b"ours",)))
    assert is_halted(node.step(beat(1, b"theirs")))


def test_a_state_that_is_the_leaders_does_not() -> None:
    node = follower(1)
    node.step(raft.Applied(index=1, digests=(b"same",)))
    assert isinstance(messages(node.step(beat(1, b"same")))[0], m.HeartbeatResp)


def test_what_a_follower_is_shown_before_it_gets_there_is_compared_when_it_does() -> None:
    node = follower(9)
    node.step(raft.Applied(index=3, digests=(b"1", b"2", b"3")))
    assert not is_halted(node.step(beat(5, b"theirs")))
    assert not is_halted(node.step(raft.Applied(index=4, digests=(b"4",))))
    assert is_halted(node.step(raft.Applied(index=7, digests=(b"ours", b"6", b"7"))))


def test_a_leader_that_is_always_ahead_is_compared_with_all_the_same() -> None:
    """The newest would never be reached: each beat shows one that is further away."""
    node = follower(40)
    halted = []
    for turn in range(1, 10):
        node.step(beat(turn * 4, b"theirs"))
        halted.append(is_halted(node.step(raft.Applied(index=turn, digests=(b"ours",)))))
    assert halted.index(True) == 3


def test_a_leader_that_applies_slowly_is_compared_with_as_long_as_our_digests_are_kept() -> None:
    node = follower(20, digests_kept=4)
    node.step(raft.Applied(index=9, digests=(b"ours",) * 9))
    assert not is_halted(node.step(beat(5, b"theirs")))
    assert is_halted(node.step(beat(6, b"theirs")))


def test_without_a_digest_on_either_side_there_is_nothing_to_compare() -> None:
    node = follower(9)
    node.step(beat(2, b""))
    node.step(beat(3, b"theirs"))
    assert not is_halted(node.step(raft.Applied(index=4)))
    node.step(beat(6, b"theirs"))  # what was shown before is past, and makes room
    assert is_halted(node.step(raft.Applied(index=6, digests=(b"5", b"ours"))))


def test_digests_are_kept_for_a_while_only() -> None:
    digests = Digests(kept=3)
    for index in range(10):
        digests.applied(index, (b"d",))
    assert [index for index in range(12) if digests.at(index)] == [7, 8, 9]
    digests.applied(19, (b"e",) * 10)
    assert [index for index in range(30) if digests.at(index)] == [17, 18, 19]


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_a_damaged_state_is_found_within_two_beats_of_steady_load(batch: int) -> None:
    group = Group("a", "b", "c")
    group.elect("a")
    for turn in range(40):
        if turn == 20:
            group.members["c"].digest_of = lambda entry: b"damaged %d" % entry.index
        group.propose("a", *(f"{turn}.{n}" for n in range(batch)))
        group.step("a", raft.Tick())  # heartbeats and appends are on their way at once, and are never all settled
        for _ in range(12):
            if group.wire:
                message = group.wire.pop(0)
                group.step(message.dst, raft.Recv(message=message))
        if any(isinstance(action, raft.Fatal) for action in group.members["c"].others):
            break
    assert 20 <= turn <= 20 + 3 * SETTINGS.heartbeat_ticks
    assert not any(isinstance(action, raft.Fatal) for name in "ab" for action in group.members[name].others)
