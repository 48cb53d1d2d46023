"""§6.4 of the dissertation: a read sees every write that was answered before it began."""

from pistage import raft
from pistage.raft import messages as m
from tests.raft.group import SETTINGS, Group


def led(*names: str) -> Group:
    group = Group(*names)
    group.elect("a")
    return group


def read(group: Group, name: str, token: int = 7) -> None:
    group.step(name, raft.Read(token=token))


def ready(group: Group, name: str) -> list[tuple[int, int]]:
    return [(x.token, x.index) for x in group.members[name].others if isinstance(x, raft.ReadReady)]


def refused(group: Group, name: str) -> list[tuple[int, raft.Refusal | None]]:
    return [(x.token, x.refusal) for x in group.members[name].others if isinstance(x, raft.Reply) and x.refusal]


def test_a_read_is_ready_after_a_round_of_heartbeats_at_the_commit_index() -> None:
    group = led("a", "b", "c")
    group.propose("a", "x")
    group.deliver()
    read(group, "a")
    assert ready(group, "a") == []
    group.deliver()
    assert ready(group, "a") == [(7, 2)]


def test_one_node_alone_reads_at_once() -> None:
    group = led("a")
    read(group, "a")
    assert ready(group, "a") == [(7, 1)]


def test_a_leader_without_a_commit_of_its_term_lets_readers_wait() -> None:
    group = Group("a", "b", "c")
    group.is_disk_slow["b"] = group.is_disk_slow["c"] = True
    group.elect_without_commit("a")
    read(group, "a")
    group.deliver()
    assert ready(group, "a") == []
    group.sync("b")
    group.sync("c")
    group.deliver()
    assert [token for token, _ in ready(group, "a")] == [7]


def test_a_follower_whose_leader_has_no_commit_of_its_term_waits_with_it() -> None:
    group = Group("a", "b", "c")
    group.is_disk_slow["b"] = group.is_disk_slow["c"] = True
    group.elect_without_commit("a")
    read(group, "b")
    group.deliver()
    assert ready(group, "b") == refused(group, "b") == []
    group.sync("b")
    group.sync("c")
    group.deliver()
    assert ready(group, "b") == [(7, group["a"].commit)]
    assert group["a"].leadership is not None
    assert group["a"].commit >= group["a"].leadership.first_index


def test_answers_to_an_older_round_confirm_nothing() -> None:
    group = led("a", "b", "c")
    read(group, "a", 1)
    group.deliver()
    old = [message for message in group.sent if isinstance(message, m.HeartbeatResp)]
    group.isolate("a")
    read(group, "a", 2)
    for message in old:
        group.step("a", raft.Recv(message=message))
    assert [token for token, _ in ready(group, "a")] == [1]


def test_readers_who_come_during_a_round_go_with_the_next() -> None:
    group = led("a", "b", "c")
    for token in range(20):
        read(group, "a", token)
    assert group["a"].leadership is not None
    assert group["a"].leadership.reads.newest == 1
    group.deliver()
    assert [token for token, _ in ready(group, "a")] == list(range(20))
    assert group["a"].leadership.reads.newest == 2


def test_a_deposed_leader_serves_no_read() -> None:
    group = led("a", "b", "c")
    group.isolate("a")
    group.elect("b")
    group.propose("b", "x")
    group.deliver()
    read(group, "a")
    group.tick("a", times=25)
    assert ready(group, "a") == []
    assert refused(group, "a") == [(7, raft.Refusal.NOT_LEADER)]


def test_a_follower_asks_the_leader() -> None:
    group = led("a", "b", "c")
    group.propose("a", "x")
    group.deliver()
    read(group, "b")
    group.deliver()
    assert ready(group, "b") == [(7, 2)]
    for message in [message for message in group.sent if isinstance(message, m.ReadIndexResp)]:
        group.step("b", raft.Recv(message=message))
    assert ready(group, "b") == [(7, 2)]


def test_a_follower_without_an_answer_or_a_leader_says_so() -> None:
    group = led("a", "b", "c")
    group.cut = {("b", "a")}
    read(group, "b")
    group.tick("a", "b", times=11)
    assert refused(group, "b") == [(7, raft.Refusal.TIMED_OUT)]
    group.isolate("b")
    read(group, "b", 8)
    group.tick("b", times=8)
    read(group, "b", 9)
    group.step("b", raft.Recv(message=m.PreVote(src="c", dst="b", term=4, last_index=0, last_term=0)))
    group.tick("b", times=30)
    read(group, "b", 10)
    assert refused(group, "b")[1:] == [
        (8, raft.Refusal.TIMED_OUT),
        (9, raft.Refusal.NOT_LEADER),
        (10, raft.Refusal.NOT_LEADER),
    ] or [token for token, _ in refused(group, "b")[1:]] == [8, 9, 10]


def test_a_change_of_leader_refuses_what_was_forwarded() -> None:
    group = led("a", "b", "c")
    group.cut = {("b", "a")}
    read(group, "b")
    group.deliver()
    group.step("b", raft.Recv(message=m.Heartbeat(src="c", dst="b", term=5, commit=0, round=0)))
    assert refused(group, "b") == [(7, raft.Refusal.NOT_LEADER)]


def test_too_many_readers_are_refused_here_and_there() -> None:
    settings = raft.Settings(heartbeat_ticks=2, election_ticks=10, reads_waiting_max=2)
    group = Group("a", "b", "c", settings=settings)
    group.elect("a")
    for token in range(4):
        read(group, "b", token)
    assert [token for token, _ in refused(group, "b")] == [2, 3]
    group.isolate("a")
    for token in range(5):
        read(group, "a", token)
    assert [token for token, _ in refused(group, "a")] == [3, 4]
    group.step("a", raft.Recv(message=m.ReadIndex(src="b", dst="a", term=1, ticket=5)))
    assert SETTINGS.reads_waiting_max == 10_000
