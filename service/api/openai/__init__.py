"""The API that the `openai` client and everything built on it speak: the one model, chat completions, their errors."""
