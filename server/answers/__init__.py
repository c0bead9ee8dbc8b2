"""From a question to an answer with citations: search, prompt, generate, cite."""
