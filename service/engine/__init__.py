"""Continuous batching over a paged KV cache, in a process of its own. Never imports FastAPI."""
