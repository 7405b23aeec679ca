"""From a conversation to text: templates, tokens, stop strings and the generation use case."""
