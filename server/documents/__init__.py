"""Documents on their way in, being read, and out again."""
