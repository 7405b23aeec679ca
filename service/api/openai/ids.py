"""Ids of what answers are made of."""

import secrets


def new_id(kind: str) -> str:
    """A new one: it must be told from those of the conversation's other answers."""
    return f"{kind}_{secrets.token_hex(12)}"
