"""Ways to tell how likely an edge is positive; one file each."""
