"""Generate from a compressed key-value cache; attention is computed on the codes."""
