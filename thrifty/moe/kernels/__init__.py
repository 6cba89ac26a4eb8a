"""Kernels in Triton for experts that share stored channels."""
