"""The OpenAPI document and its words."""
