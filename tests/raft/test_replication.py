"""§5.3, §5.4 and §8 of the paper, §10.2.1 of the dissertation: the log, and what of it is committed."""

from dataclasses import replace

import pytest

from pistage import raft
from pistage.raft import messages as m
from pistage.raft.log import Log
from tests.raft.group import SETTINGS, Group, append, messages, normal, one, sends


def terms(node: raft.Node) -> list[int]:
    return [entry.term for entry in node.log.entries(1, node.log.last_index)]


def led(*names: str) -> Group:
    group = Group(*names)
    group.elect("a")
    return group


def test_section_5_3_what_a_majority_holds_is_committed_and_applied_everywhere() -> None:
    group = led("a", "b", "c")
    assert group.propose("a", "x", "y").index == 2
    group.deliver()
    assert [group.texts(name) for name in "abc"] == [["x", "y"]] * 3


def test_a_follower_refuses_proposals_and_names_the_leader() -> None:
    group = led("a", "b", "c")
    reply = group.propose("b", "x")
    assert (reply.refusal, reply.leader) == (raft.Refusal.NOT_LEADER, "a")


def test_section_8_a_new_leader_begins_with_an_entry_of_its_own() -> None:
    group = led("a", "b", "c")
    assert group.log_of("b") == [(1, 1)]
    assert group["b"].log.entries(1, 1)[0].kind is raft.Kind.NOOP


def test_section_10_2_1_a_leader_sends_beside_its_own_write_and_counts_itself_only_after_it() -> None:
    group = led("a", "b", "c")
    group.is_disk_slow["a"] = True
    group.cut = {("a", "c")}
    group.propose("a", "x")
    group.deliver()
    assert group["b"].log.last_index == 2
    assert group["a"].commit == 1
    group.sync("a")
    assert group["a"].commit == 2


def test_followers_alone_are_a_majority_but_a_leader_applies_only_what_is_durable_with_it() -> None:
    group = led("a", "b", "c")
    group.is_disk_slow["a"] = True
    group.propose("a", "x")
    group.deliver()
    assert group["a"].commit == 2
    assert group.texts("a") == []
    group.sync("a")
    assert group.texts("a") == ["x"]


def test_an_acknowledgement_waits_for_the_write() -> None:
    node = one("a", term=2)
    actions = node.step(append("b", "a", 2, (0, 0), [2]))
    assert [type(action) for action in actions] == [raft.Persist, raft.Send, raft.Role]
    assert [send.after_seq for send in sends(actions)] == [1]
    again = node.step(append("b", "a", 2, (0, 0), [2]))
    assert [type(action) for action in again] == [raft.Send]
    assert [send.after_seq for send in sends(again)] == [1]


@pytest.mark.parametrize(
    ("log", "prev", "new", "after"),
    [
        ([1, 1, 2], (3, 2), [3], [1, 1, 2, 3]),
        ([1, 1, 2], (2, 1), [3], [1, 1, 3]),
        ([1, 1, 2], (1, 1), [1, 2], [1, 1, 2]),
        ([1, 1, 2], (0, 0), [1], [1, 1, 2]),
        ([1, 1, 2], (1, 1), [], [1, 1, 2]),
        ([1, 1, 2], (1, 1), [1, 3, 3], [1, 1, 3, 3]),
        ([1, 1, 2], (4, 2), [3], [1, 1, 2]),
        ([1, 1, 2], (3, 3), [3], [1, 1, 2]),
    ],
    ids=["follows", "conflict", "known", "delayed", "probe", "known then conflict", "gap", "wrong term"],
)
def test_section_5_3_only_a_conflict_takes_entries_away(
    log: list[int], prev: tuple[int, int], new: list[int], after: list[int]
) -> None:
    node = one("a", term=3, log=log)
    node.step(append("b", "a", 3, prev, new))
    assert terms(node) == after


def test_figure_2_commit_goes_no_further_than_the_message_vouches_for() -> None:
    node = one("a", term=3, log=[1, 1, 1, 1])  # 3 and 4 are another leader's
    node.step(append("b", "a", 3, (2, 1), [], commit=4))
    assert node.commit == 2


def test_figure_7_a_leader_brings_each_of_the_six_logs_in_line() -> None:
    leader = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
    followers = {
        "b": [1, 1, 1, 4, 4, 5, 5, 6, 6],
        "c": [1, 1, 1, 4],
        "d": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        "e": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        "f": [1, 1, 1, 4, 4, 4, 4],
        "g": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    }
    group = Group("a", *followers)
    for name, log in {"a": leader, **followers}.items():
        group.members[name].disk = [normal(index, term) for index, term in enumerate(log, 1)]
        group.members[name].hard_state = raft.HardState(term=7)
        group.crash(name)
    group.elect("a")
    group.tick("a", times=6)
    assert all(terms(group[name]) == [*leader, 8] for name in followers)


def test_section_5_3_a_hint_skips_a_term_at_a_time() -> None:
    group = Group("a", "b", "c")
    for name, log in {"a": [1] * 50 + [4] * 50, "b": [1] * 50 + [2] * 80, "c": [1] * 50}.items():
        group.members[name].disk = [normal(index, term) for index, term in enumerate(log, 1)]
        group.members[name].hard_state = raft.HardState(term=4)
        group.crash(name)
    group.elect("a")
    group.tick("a", times=4)
    rejects = [message for message in group.sent if isinstance(message, m.AppendReject) and message.src == "b"]
    assert len(rejects) == 1
    assert terms(group["b"]) == terms(group["a"])


def test_figure_8_an_entry_of_an_older_term_is_not_committed_by_counting() -> None:
    group = Group("a", "b", "c", "d", "e", settings=replace(SETTINGS, append_entries_max=1))
    for name, log in {"a": [1, 2], "b": [1, 2], "c": [1], "d": [1], "e": [1, 3]}.items():
        group.members[name].disk = [normal(index, term) for index, term in enumerate(log, 1)]
        group.members[name].hard_state = raft.HardState(term=3)
        group.crash(name)
    group.isolate("e")
    # (c): elected for term 4, a brings entry 2 of term 2 to a majority; its own entry goes nowhere yet.
    group.drop = lambda message: isinstance(message, m.Append) and any(entry.term == 4 for entry in message.entries)
    group.elect("a")
    group.tick("a", times=9)
    assert terms(group["c"]) == [1, 2]
    assert group["a"].commit == 0
    # (e): an entry of term 4 at a majority commits all before it.
    group.drop = lambda _: False
    group.tick("a", times=3)
    assert group["a"].commit == 3


def test_a_durable_of_an_older_term_says_nothing_of_the_log() -> None:
    node = one("a", term=1)
    node.step(append("b", "a", 1, (0, 0), [1, 1]))  # seq 1: not durable yet
    node.step(append("c", "a", 2, (0, 0), [2, 2], commit=2))  # seq 2: replaces both
    assert not [x for x in node.step(raft.Durable(seq=1, term=1, last_index=2)) if isinstance(x, raft.Apply)]
    assert node.writes.stable_index == 0
    (apply,) = node.step(raft.Durable(seq=2, term=2, last_index=2))
    assert isinstance(apply, raft.Apply)
    assert [entry.term for entry in apply.entries] == [2, 2]


def test_an_older_write_of_the_same_term_does_not_vouch_for_what_replaced_it() -> None:
    node = one("a", term=1, log=[1, 1])
    node.step(append("b", "a", 2, (2, 1), []))  # seq 1: the term alone, the log ends at 2
    node.step(append("b", "a", 2, (1, 1), [2], commit=2))  # seq 2: replaces entry 2
    actions = node.step(raft.Durable(seq=1, term=2, last_index=2))
    assert [[entry.index for entry in x.entries] for x in actions if isinstance(x, raft.Apply)] == [[1]] * bool(actions)
    assert node.writes.stable_index == 1


def test_messages_that_come_twice_and_late_change_nothing() -> None:
    group = led("a", "b", "c")
    for text in "uvwxyz":
        group.propose("a", text)
        group.deliver()
    group.tick(times=3)
    old = list(group.sent)
    for message in old + old[::-1]:
        group.step(message.dst, raft.Recv(message=message))
    group.tick(times=3)
    assert [group.texts(name) for name in "abc"] == [list("uvwxyz")] * 3
    assert group["a"].role is raft.RoleName.LEADER


def test_appends_are_pipelined_up_to_a_limit_and_lost_ones_are_found() -> None:
    settings = raft.Settings(heartbeat_ticks=2, election_ticks=10, appends_in_flight_max=4)
    group = Group("a", "b", "c", settings=settings)
    group.elect("a")
    group.tick(times=2)
    group.wire.clear()
    for n in range(10):
        group.propose("a", str(n))
    to_b = [message for message in group.wire if isinstance(message, m.Append) and message.dst == "b"]
    assert len(to_b) == 4
    group.wire.clear()  # all lost
    group.tick(times=6)
    assert [group.texts(name) for name in "abc"] == [[str(n) for n in range(10)]] * 3


def test_what_is_on_its_way_to_a_follower_is_bounded_in_bytes() -> None:
    settings = raft.Settings(heartbeat_ticks=2, election_ticks=10, append_bytes_max=10, in_flight_bytes_max=25)
    group = Group("a", "b", "c", settings=settings)
    group.elect("a")
    group.tick(times=2)
    for _ in range(8):
        group.propose("a", "x" * 10)
    to_b = [message for message in group.wire if isinstance(message, m.Append) and message.dst == "b"]
    assert len(to_b) == 3
    assert group["a"].leadership is not None
    assert group["a"].leadership.followers["b"].in_flight_bytes == 30
    group.deliver()
    assert len(group.texts("b")) == 8
    assert group["a"].leadership.followers["b"].in_flight_bytes == 0


def test_entries_without_a_payload_are_not_free() -> None:
    settings = raft.Settings(heartbeat_ticks=2, election_ticks=10, uncommitted_bytes_max=10_000)
    group = Group("a", "b", "c", settings=settings)
    group.elect("a")
    group.isolate("a")
    refusals = [group.propose("a", *[""] * 10).refusal for _ in range(20)]
    assert refusals[0] is None
    assert refusals[-1] is raft.Refusal.OVERLOADED
    assert group["a"].leadership is not None
    group.heal()
    group.tick(times=4)
    assert group["a"].leadership.uncommitted_bytes == 0


def test_an_append_is_bounded_in_bytes_and_in_entries() -> None:
    settings = raft.Settings(heartbeat_ticks=2, election_ticks=10, append_bytes_max=10, append_entries_max=3)
    group = Group("a", "b", "c", settings=settings)
    group.elect("a")
    group.propose("a", "x" * 30, "y" * 5, "z" * 5, "w", *"123456")
    group.deliver()
    group.tick(times=2)
    sizes = [[len(e.payload) for e in x.entries] for x in group.sent if isinstance(x, m.Append) and x.dst == "b"]
    assert all(len(each) <= 3 and (sum(each) <= 10 or len(each) == 1) for each in sizes)
    assert len(group.texts("b")) == 10


def test_too_much_uncommitted_is_refused_until_some_is_committed() -> None:
    settings = raft.Settings(heartbeat_ticks=2, election_ticks=10, uncommitted_bytes_max=10)
    group = Group("a", "b", "c", settings=settings)
    group.elect("a")
    assert group.propose("a", "x" * 30).refusal is None  # larger than the limit, but nothing else waits
    assert group.propose("a", "y").refusal is raft.Refusal.OVERLOADED
    group.deliver()
    assert group.propose("a", "y").refusal is None


def test_a_log_that_is_shorter_than_what_the_leader_knows_of_it_stops_the_node() -> None:
    node = one("a", term=2, log=[1])
    (fatal,) = node.step(raft.Recv(message=m.Heartbeat(src="b", dst="a", term=2, commit=5, round=0)))
    assert isinstance(fatal, raft.Fatal)
    assert "lost entries" in fatal.reason


def test_a_reject_that_is_older_than_an_acknowledgement_is_ignored() -> None:
    group = led("a", "b", "c")
    group.propose("a", "x", "y", "z")
    group.deliver()
    late = m.AppendReject(src="b", dst="a", term=1, prev_index=2, hint_index=0, hint_term=0)
    assert messages(group["a"].step(raft.Recv(message=late))) == []
    beyond = m.AppendResp(src="b", dst="a", term=1, match_index=99)
    assert messages(group["a"].step(raft.Recv(message=beyond))) == []
    stranger = m.AppendResp(src="z", dst="a", term=1, match_index=4)
    assert messages(group["a"].step(raft.Recv(message=stranger))) == []


def test_a_crash_takes_what_was_not_durable_and_nothing_else() -> None:
    group = led("a", "b", "c")
    group.propose("a", "x")
    group.deliver()
    group.is_disk_slow["b"] = True
    group.propose("a", "y")
    group.deliver()
    group.crash("b")
    assert group["b"].log.last_index == 2
    group.is_disk_slow["b"] = False
    group.tick(times=4)
    assert group.texts("b") == ["x", "y"]


def test_a_proposal_of_nothing_is_a_mistake_of_the_driver() -> None:
    group = led("a")
    with pytest.raises(ValueError, match="of nothing"):
        group["a"].step(raft.Propose(token=1, payloads=()))


def test_what_the_state_covers_is_never_truncated() -> None:
    log = Log(raft.Base(index=5, term=1), [normal(6, 1)])
    with pytest.raises(ValueError, match="begins after 5"):
        log.truncate_from(5)


def test_a_log_takes_only_what_follows() -> None:
    log = Log(raft.Base())
    for wrong in (normal(2, 1), normal(0, 1)):
        with pytest.raises(ValueError, match="does not follow"):
            log.append([wrong])
    log.append([normal(1, 2)])
    with pytest.raises(ValueError, match="does not follow"):
        log.append([normal(2, 1)])
    with pytest.raises(ValueError, match="not in"):
        log.compact(9)


def test_one_node_alone_answers_after_its_own_sync() -> None:
    group = Group("a", settings=SETTINGS)
    group.elect("a")
    group.is_disk_slow["a"] = True
    group.propose("a", "x")
    assert group.texts("a") == []
    group.sync("a")
    assert group.texts("a") == ["x"]
