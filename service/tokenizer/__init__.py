"""Text to token ids and back, for the tokenizers of the models that are served; each proves itself as it is loaded."""
