"""prune: which channels a network needs; a smaller dense network with the same function."""
