"""A model's answers, and what they and its embeddings are worth. Nothing is imported here: scoring needs no torch."""
