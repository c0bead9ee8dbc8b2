"""One file a resource: thin handlers over the use cases."""
