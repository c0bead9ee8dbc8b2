"""Texts to vectors for clients."""
