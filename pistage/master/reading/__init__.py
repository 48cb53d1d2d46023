"""Reading output: what is asked for is found by sums, read in few large reads, and told in the order that is wanted."""
