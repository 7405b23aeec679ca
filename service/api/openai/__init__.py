"""The API that the `openai` client and everything built on it speak: the model, chat completions, responses, errors."""
