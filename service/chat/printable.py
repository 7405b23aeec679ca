"""Which characters are text. The others are nobody's to send, in a question or in an answer that is sent back."""

import re

CONTROL = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f"
"""Those that are not, as in a regular expression's brackets: of control characters only tab, line feed and carriage
return are text."""

CONTROL_CHARACTER = re.compile(f"[{CONTROL}]")


def without_control(text: str) -> str:
    """What is left of a text that is sent back as it was answered, or as a tool gave it: nobody can mend that."""
    return CONTROL_CHARACTER.sub("", text)
