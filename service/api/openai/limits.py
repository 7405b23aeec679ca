"""How long answers are that nobody limits."""

DEFAULT_NEW_TOKENS = 4096
"""Clients of this API seldom set a limit and seldom show that one was reached, so it is high; and not all that the
context holds, since every token that an answer may have is reserved in the KV cache before it begins."""
