"""POST /v1/completions: what it takes, and how it answers."""
