"""Signed graphs: calibrated signs of edges, audits of the signs that are there, and augmentation (SGA)."""
