"""What ``fano`` does from a shell."""
