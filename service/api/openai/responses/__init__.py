"""POST /v1/responses: what it takes, and how it answers. Nothing is kept: a conversation is sent whole each time."""
