"""How fast the hot paths are, each against a textbook version that does the same work in the same run."""
