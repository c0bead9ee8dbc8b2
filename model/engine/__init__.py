"""The engine: who runs next, what is sampled, when it stops."""
