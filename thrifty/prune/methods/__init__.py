"""Methods that decide which channels stay: a file and a class of its name each."""
