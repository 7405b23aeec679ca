"""Answers that keep to a grammar: which tokens may come next is worked out by llguidance, token by token.

Source: https://github.com/guidance-ai/llguidance (MIT); its parser and lexer run without Python's interpreter lock.
"""
