"""What `scripts/bench raft` is made of: a load generator, the three kinds of groups, and what is measured of them."""
