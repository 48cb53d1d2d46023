"""How long, how much, how many: what may differ between groups but not between the members of one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Times are in ticks; an election begins after `election_ticks` to twice that without a leader."""

    heartbeat_ticks: int = 2
    election_ticks: int = 20
    append_bytes_max: int = 1 << 20  # one append does not hold the link for long
    append_entries_max: int = 1024
    appends_in_flight_max: int = 64
    in_flight_bytes_max: int = 8 << 20  # of each follower, and one append more: it fills a link of 100 ms and 80 MB/s
    uncommitted_bytes_max: int = 64 << 20  # in memory; then proposals are refused: the group cannot keep up
    reads_waiting_max: int = 10_000
    promote_lag_max: int = 1024  # entries that a learner may lack and still be promoted: seconds of work, not minutes
    digests_kept: int = 4096  # how far a leader's state may be behind a follower's and still be compared

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_ticks < self.election_ticks:
            raise ValueError("an election must take longer than a heartbeat")
