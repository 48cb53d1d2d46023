"""The agent: one session with the leader, and the attempts that run on this machine."""
