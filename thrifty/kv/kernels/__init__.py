"""Attention on packed codes in Triton, for GPUs; imported only where a tensor is on one."""
