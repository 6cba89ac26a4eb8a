"""Small tasks for lm-eval, bundled: their items were written for thrifty, and they are smoke tests, no benchmarks."""
