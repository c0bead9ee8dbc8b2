"""Chat completions: schema, fields, functions, forms of a reply, and the objects on the wire."""
