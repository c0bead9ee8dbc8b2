"""What the server measures: each family of ``/metrics`` with its labels, its meaning, and what helps when it is bad."""
