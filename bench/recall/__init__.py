"""Exact recall by length and depth: what the archive finds, and whether the answer is right once it was found."""
