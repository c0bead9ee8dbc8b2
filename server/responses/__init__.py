"""Responses as OpenAI has them: requests, events, and the store of what was answered."""
