"""How answers reach the client: whole, or as server-sent events."""
