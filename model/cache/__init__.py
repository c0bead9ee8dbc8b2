"""Fixed pools that hold what a sequence remembers, and the plan that sizes them."""
