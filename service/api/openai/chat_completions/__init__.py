"""POST /v1/chat/completions: what it takes, and how it answers."""
