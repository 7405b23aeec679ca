"""From a conversation to an answer: templates, stop strings and the generation use case."""
