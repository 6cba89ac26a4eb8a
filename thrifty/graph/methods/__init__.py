"""Ways to choose which edges stay and which are added; one file each."""
