"""Ways to choose how many bits each layer and head may spend; one file each."""
