"""The pictures of the documentation, drawn from what a server that runs has told."""
