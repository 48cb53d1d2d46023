"""Real masters and agents under faults: what was acknowledged is there and done exactly once, on every master alike."""
