"""thrifty: give a network a budget; it learns what to keep."""
