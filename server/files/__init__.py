"""Files, uploads and vector stores: OpenAI's objects over the documents that the library keeps."""
