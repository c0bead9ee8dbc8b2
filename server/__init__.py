"""HTTP in, events out: the OpenAI-compatible surface over the model and the archive."""
