"""The memory bill: of this moment, and of a request before it runs."""
