"""§5.2 and §5.4.1 of the paper; PreVote, leases and CheckQuorum are §9.6, §4.2.3 and §6.2 of the dissertation."""

import pytest

from pistage import raft
from pistage.raft import messages as m
from tests.raft.group import Group, append, messages, one, sends


def pre_vote(src: str, term: int, last: tuple[int, int], dst: str = "a") -> raft.Recv:
    return raft.Recv(message=m.PreVote(src=src, dst=dst, term=term, last_index=last[0], last_term=last[1]))


def vote(src: str, term: int, last: tuple[int, int] = (9, 9), *, is_transfer: bool = False) -> raft.Recv:
    message = m.Vote(src=src, dst="a", term=term, last_index=last[0], last_term=last[1], is_transfer=is_transfer)
    return raft.Recv(message=message)


def granted(actions: list[raft.Action]) -> list[bool]:
    return [msg.is_granted for msg in messages(actions) if isinstance(msg, m.VoteResp | m.PreVoteResp)]


def candidate() -> raft.Node:
    """`a`, whose campaign in term 2 is durable: its own vote is counted."""
    node = one("a")
    while node.role is not raft.RoleName.PRE_CANDIDATE:
        node.step(raft.Tick())
    resp = m.PreVoteResp(src="b", dst="a", term=1, for_term=2, is_granted=True)
    (write,) = (x for x in node.step(raft.Recv(message=resp)) if isinstance(x, raft.Persist))
    node.step(raft.Durable(seq=write.seq, term=write.term, last_index=write.last_index))
    return node


def test_section_5_2_a_follower_without_a_leader_is_elected_after_its_timeout() -> None:
    group = Group("a", "b", "c")
    group.elect("a")
    assert [group[name].leader for name in "abc"] == ["a", "a", "a"]
    assert {group[name].term for name in "abc"} == {1}


def test_section_5_2_timeouts_are_spread_and_never_shorter_than_the_setting() -> None:
    node, waits = one("a"), set()
    for _ in range(40):
        start = node.now
        while node.role is not raft.RoleName.PRE_CANDIDATE:
            node.step(raft.Tick())
        waits.add(node.now - start)
        node.become_follower(node.term, None)
    assert min(waits) >= 10
    assert max(waits) < 20
    assert len(waits) > 5


def test_section_5_2_one_vote_a_term_first_come() -> None:
    node = one("a")
    assert granted(node.step(vote("b", 2))) == [True]
    assert granted(node.step(vote("c", 2))) == [False]
    assert granted(node.step(vote("b", 2))) == [True]
    assert granted(node.step(vote("c", 3))) == [True]


def test_a_grant_waits_for_the_vote_to_be_durable_and_so_does_its_repetition() -> None:
    node = one("a")
    for _ in range(2):
        actions = node.step(vote("b", 2))
        assert [send.after_seq for send in sends(actions)] == [1]
    node.step(raft.Durable(seq=1, term=2, last_index=0))
    assert [send.after_seq for send in sends(node.step(vote("b", 2)))] == [None]


def test_a_vote_is_remembered_over_a_crash() -> None:
    node = one("a", hard_state=raft.HardState(term=2, vote="b"))
    assert granted(node.step(vote("c", 2))) == [False]


@pytest.mark.parametrize(
    ("theirs", "is_granted"),
    [((3, 2), True), ((4, 2), True), ((2, 2), False), ((1, 3), True), ((9, 1), False)],
    ids=["same", "longer", "shorter", "newer term", "longer but older"],
)
def test_section_5_4_1_votes_only_for_a_log_as_new_as_ours(theirs: tuple[int, int], is_granted: bool) -> None:
    assert granted(one("a", term=2, log=[1, 1, 2]).step(vote("b", 3, theirs))) == [is_granted]
    assert granted(one("a", term=2, log=[1, 1, 2]).step(pre_vote("b", 2, theirs))) == [is_granted]


def test_votes_are_counted_by_name() -> None:
    node = one("a", members="abcde")
    while node.role is not raft.RoleName.PRE_CANDIDATE:
        node.step(raft.Tick())
    for voter in "bbb":
        node.step(raft.Recv(message=m.PreVoteResp(src=voter, dst="a", term=1, for_term=2, is_granted=True)))
        assert node.role is raft.RoleName.PRE_CANDIDATE
    node.step(raft.Recv(message=m.PreVoteResp(src="c", dst="a", term=1, for_term=2, is_granted=True)))
    node.step(raft.Durable(seq=1, term=2, last_index=0))
    for _ in range(5):
        node.step(raft.Recv(message=m.VoteResp(src="b", dst="a", term=2, is_granted=True)))
        node.step(raft.Recv(message=m.VoteResp(src="x", dst="a", term=2, is_granted=True)))
    assert node.role is raft.RoleName.CANDIDATE
    node.step(raft.Recv(message=m.VoteResp(src="e", dst="a", term=2, is_granted=True)))
    assert node.role is raft.RoleName.LEADER


def test_a_candidate_counts_itself_only_when_its_vote_is_durable() -> None:
    group = Group("a")
    group.is_disk_slow["a"] = True
    group.tick(times=25)
    assert group["a"].role is raft.RoleName.CANDIDATE
    group.sync("a", 1)
    assert group["a"].role is raft.RoleName.LEADER


def test_refusals_and_votes_of_older_terms_elect_nobody() -> None:
    node = candidate()
    node.step(raft.Recv(message=m.VoteResp(src="b", dst="a", term=2, is_granted=False)))
    node.step(raft.Recv(message=m.VoteResp(src="b", dst="a", term=1, is_granted=True)))
    assert node.role is raft.RoleName.CANDIDATE


def test_section_5_2_a_candidate_follows_a_leader_of_its_term() -> None:
    node = candidate()
    node.step(append("b", "a", 2, (0, 0), []))
    assert (node.role, node.leader) == (raft.RoleName.FOLLOWER, "b")


def test_section_5_1_a_leader_that_hears_of_a_newer_term_follows() -> None:
    group = Group("a", "b", "c")
    group.elect("a")
    group.step("a", append("b", "a", 7, (1, 1), []))
    assert (group["a"].role, group["a"].term, group["a"].leader) == (raft.RoleName.FOLLOWER, 7, "b")


def test_section_9_6_asking_for_pre_votes_moves_no_term() -> None:
    group = Group("a", "b", "c")
    group.elect("a")
    group.isolate("c")
    group.tick(times=200)
    assert group["c"].term == 1
    group.heal()
    group.tick(times=5)
    assert (group["a"].role, group["a"].term, group["c"].leader) == (raft.RoleName.LEADER, 1, "a")


def test_a_pre_vote_for_an_older_question_is_not_counted() -> None:
    node = one("a")
    while node.role is not raft.RoleName.PRE_CANDIDATE:
        node.step(raft.Tick())
    node.step(raft.Recv(message=m.PreVoteResp(src="b", dst="a", term=1, for_term=1, is_granted=True)))
    node.step(raft.Recv(message=m.PreVoteResp(src="b", dst="a", term=1, for_term=2, is_granted=False)))
    assert node.role is raft.RoleName.PRE_CANDIDATE


def test_section_4_2_3_who_hears_a_leader_grants_nothing_and_keeps_its_term() -> None:
    node = one("a", term=1)
    node.step(append("b", "a", 1, (0, 0), []))
    assert granted(node.step(pre_vote("c", 5, (9, 9)))) == [False]
    assert granted(node.step(vote("c", 6))) == [False]
    assert node.term == 1
    for _ in range(10):
        node.step(raft.Tick())
    assert granted(node.step(vote("c", 6))) == [True]


def test_section_4_2_3_a_leader_does_not_yield_to_a_candidate_that_it_did_not_send() -> None:
    group = Group("a", "b", "c")
    group.elect("a")
    group.step("a", vote("c", 9))
    assert group["a"].role is raft.RoleName.LEADER
    group.step("a", vote("c", 9, is_transfer=True))
    assert (group["a"].role, group["a"].term) == (raft.RoleName.FOLLOWER, 9)


def test_section_6_2_a_leader_that_no_majority_answers_steps_down() -> None:
    group = Group("a", "b", "c")
    group.elect("a")
    group.isolate("a")
    group.tick("a", times=21)
    assert group["a"].role is not raft.RoleName.LEADER


def test_a_deposed_leader_is_told_of_the_newer_term() -> None:
    node = one("a", term=5)
    (answer,) = messages(node.step(append("b", "a", 4, (0, 0), [4])))
    assert isinstance(answer, m.AppendReject)
    assert answer.term == 5
    assert node.log.last_index == 0
    assert node.step(raft.Recv(message=m.AppendResp(src="b", dst="a", term=4, match_index=9))) == []


def test_two_leaders_in_one_term_stop_the_node_that_sees_it() -> None:
    node = one("a")
    node.step(append("b", "a", 2, (0, 0), []))
    (fatal,) = node.step(append("c", "a", 2, (0, 0), []))
    assert isinstance(fatal, raft.Fatal)
    assert node.step(raft.Tick()) == []


def test_a_learner_and_a_stranger_never_campaign() -> None:
    for name in "xl":
        base = raft.Base(config=raft.Config(voters=("a",), learners=("l",)))
        node = one(name, base=base)
        for _ in range(100):
            assert node.step(raft.Tick()) == []


def test_a_node_whose_disk_is_full_or_hangs_does_not_campaign() -> None:
    node = one("a")
    node.step(raft.DiskFault(fault=raft.Fault.FULL))
    for _ in range(100):
        assert node.step(raft.Tick()) == []
    hung = one("a")
    hung.step(vote("b", 2))  # its write never returns
    for _ in range(100):
        assert messages(hung.step(raft.Tick())) == []
    hung.step(raft.Durable(seq=1, term=2, last_index=0))
    while hung.role is not raft.RoleName.PRE_CANDIDATE:
        hung.step(raft.Tick())


def test_a_node_whose_disk_is_full_or_hangs_encourages_nobody() -> None:
    """Its grant would make a candidate, and move the term, for a vote that never comes."""
    full, hung = one("a"), one("a")
    full.step(raft.DiskFault(fault=raft.Fault.FULL))
    hung.step(vote("c", 2))
    for _ in range(12):
        hung.step(raft.Tick())
    for node in (full, hung):
        assert granted(node.step(pre_vote("b", node.term, (9, 9)))) == [False]
    (seq, term) = (hung.writes.last_seq, hung.term)
    hung.step(raft.Durable(seq=seq, term=term, last_index=0))
    assert granted(hung.step(pre_vote("b", hung.term, (9, 9)))) == [True]


def test_a_leader_whose_disk_hangs_or_is_full_steps_down_although_it_is_answered() -> None:
    group = Group("a", "b", "c")
    group.elect("a")
    group.is_disk_slow["a"] = True
    group.propose("a", "x")
    group.tick("a", times=12)
    assert group["a"].role is raft.RoleName.FOLLOWER
    group = Group("a", "b", "c")
    group.elect("a")
    group.step("a", raft.DiskFault(fault=raft.Fault.FULL))
    assert group["a"].role is raft.RoleName.FOLLOWER


def test_a_failed_disk_ends_the_node() -> None:
    node = one("a")
    (fatal,) = node.step(raft.DiskFault(fault=raft.Fault.FAILED))
    assert isinstance(fatal, raft.Fatal)


def test_a_state_that_is_ahead_of_its_log_is_refused() -> None:
    with pytest.raises(ValueError, match="not of one node"):
        one("a", log=[1], applied=2)


def test_a_heartbeat_must_be_shorter_than_an_election() -> None:
    with pytest.raises(ValueError, match="longer than a heartbeat"):
        raft.Settings(heartbeat_ticks=20, election_ticks=20)
