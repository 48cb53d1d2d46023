"""§7 of the paper: what happens when the log no longer reaches back far enough."""

from pistage import raft
from pistage.raft import messages as m
from tests.raft.group import Group, append, messages, one


def behind() -> Group:
    """`c` lacks what `a` has compacted."""
    group = Group("a", "b", "c")
    group.elect("a")
    group.isolate("c")
    group.propose("a", *map(str, range(20)))
    group.deliver()
    group.step("a", raft.Compact(index=15))
    group.heal()
    group.tick("a", "b", times=3)
    return group


def asked(group: Group) -> list[raft.InstallSnap]:
    return [action for action in group.members["c"].others if isinstance(action, raft.InstallSnap)]


def base_of(group: Group, name: str) -> raft.Base:
    """What a snapshot of this node's state would say."""
    node = group[name]
    return raft.Base(index=node.applied, term=node.log.term_at(node.applied), config=node.log.config)


def test_compaction_drops_what_is_applied_and_nothing_else() -> None:
    group = behind()
    assert group["a"].log.base.index == 15
    assert group["a"].step(raft.Compact(index=10)) == []
    group.step("a", raft.Compact(index=99))
    assert group["a"].log.base.index == group["a"].applied == 21
    assert group.members["a"].disk == []


def test_a_follower_behind_the_first_kept_entry_is_offered_a_snapshot_once() -> None:
    group = behind()
    assert asked(group) == [raft.InstallSnap(source="a", index=15)]
    group.tick("a", "b", times=30)
    offers = [message for message in group.sent if isinstance(message, m.SnapOffer)]
    assert 2 <= len(offers) <= 4  # again after an election timeout
    assert len(asked(group)) == 1


def test_a_fetch_is_not_begun_anew_each_time_the_leader_compacts() -> None:
    group = behind()
    for turn in range(4):
        group.propose("a", *map(str, range(5)))
        group.deliver()
        group.step("a", raft.Compact(index=20 + 5 * turn))
        group.tick("a", "b", times=11)
    assert len({message.index for message in group.sent if isinstance(message, m.SnapOffer)}) > 2
    assert len(asked(group)) == 1


def test_a_membership_that_changed_during_a_fetch_comes_with_it_or_after_it() -> None:
    group = behind()
    before = base_of(group, "a")
    group.conf("a", "remove", "b")
    group.deliver()
    group.step("c", raft.SnapInstalled(base=before))
    assert group["c"].log.config.voters == ("a", "b", "c")
    group.tick("a", "c", times=4)
    assert group["c"].log.config.voters == ("a", "c")

    group = behind()
    group.conf("a", "remove", "b")
    group.deliver()
    group.step("c", raft.SnapInstalled(base=base_of(group, "a")))
    assert group["c"].log.config.voters == ("a", "c")
    group.deliver()
    assert group["a"].commit == group["c"].commit


def test_one_that_was_removed_during_its_fetch_is_not_heard() -> None:
    group = behind()
    base = base_of(group, "a")
    group.conf("a", "remove", "c")
    group.deliver()
    group.step("c", raft.SnapInstalled(base=base))
    group.deliver()
    assert group["a"].leadership is not None
    assert list(group["a"].leadership.followers) == ["b"]


def test_a_snapshot_replaces_the_log_in_one_write_and_the_rest_follows() -> None:
    group = behind()
    base = base_of(group, "a")
    actions = group.step("c", raft.SnapInstalled(base=base))
    (write,) = (action for action in actions if isinstance(action, raft.Persist))
    assert (write.install, write.entries, write.last_index) == (base, (), 21)
    group.propose("a", "more")
    group.tick("a", times=6)
    assert group.texts("c") == ["more"]
    assert group["c"].commit == 22


def test_its_acknowledgement_waits_for_that_write() -> None:
    group = behind()
    group.is_disk_slow["c"] = True
    group.step("c", raft.SnapInstalled(base=base_of(group, "a")))
    assert [message for message in group.wire if isinstance(message, m.AppendResp)] == []
    group.sync("c")
    assert [x.match_index for x in group.wire if isinstance(x, m.AppendResp)] == [21]


def test_a_snapshot_that_nobody_asked_for_or_that_is_old_is_not_taken() -> None:
    group = behind()
    old = raft.Base(index=0, term=0)
    assert not [x for x in group.step("c", raft.SnapInstalled(base=old)) if isinstance(x, raft.Persist)]
    assert group["c"].step(raft.SnapInstalled(base=base_of(group, "a"))) == []


def test_a_snapshot_from_who_leads_no_longer_is_not_taken() -> None:
    # Its state may hold what a later term committed; to the leader of this term that would be another entry.
    group = behind()
    base = base_of(group, "a")
    group.step("c", append("b", "c", 9, (0, 0), []))
    assert group.step("c", raft.SnapInstalled(base=base)) == []


def test_a_fetch_that_failed_is_asked_for_again() -> None:
    group = behind()
    group.step("c", raft.SnapFailed())
    group.tick("a", "b", times=30)
    assert len(asked(group)) == 2


def test_a_node_that_has_the_entries_keeps_them() -> None:
    node = one("a", term=1, log=[1, 1, 1])
    node.step(raft.Recv(message=m.SnapOffer(src="b", dst="a", term=1, index=2)))
    actions = node.step(raft.SnapInstalled(base=raft.Base(index=2, term=1)))
    assert not any(isinstance(action, raft.Persist) for action in actions)
    assert node.commit == 2
    assert node.log.last_index == 3


def test_an_offer_to_who_is_past_it_is_answered_with_what_it_has() -> None:
    node = one("a", term=1, log=[1, 1, 1], applied=3)
    (answer,) = messages(node.step(raft.Recv(message=m.SnapOffer(src="b", dst="a", term=1, index=2))))
    assert isinstance(answer, m.AppendResp)
    assert answer.match_index == 3


def test_an_append_that_begins_before_the_log_is_not_a_conflict() -> None:
    node = one("a", term=1, log=[1] * 10, applied=8)
    node.step(raft.Compact(index=6))
    (answer,) = messages(node.step(append("b", "a", 1, (2, 1), [1] * 9)))
    assert isinstance(answer, m.AppendResp)
    assert (answer.match_index, node.log.last_index) == (11, 11)
    (answer,) = messages(node.step(append("b", "a", 1, (2, 1), [1])))
    assert isinstance(answer, m.AppendResp)
    assert answer.match_index == 8


def test_a_follower_whose_log_is_shorter_than_the_leaders_base_needs_a_snapshot_and_no_probing() -> None:
    group = behind()
    rejects = [message for message in group.sent if isinstance(message, m.AppendReject) and message.src == "c"]
    assert len(rejects) <= 1
