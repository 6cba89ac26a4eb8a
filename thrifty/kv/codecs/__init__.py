"""Ways to hold keys and values; one file each."""
