"""Prompts that are longer than the window: read whole, with what they ask for put before the question."""
