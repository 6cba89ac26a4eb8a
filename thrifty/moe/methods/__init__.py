"""Ways to choose the experts and their routers; one file each."""
