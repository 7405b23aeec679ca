"""What form an answer has, where it may not be any text."""

from dataclasses import dataclass
from typing import Any

from service.engine.grammars.schema import json_grammar
from service.engine.grammars.texts import pattern_grammar


@dataclass(frozen=True, slots=True)
class Form:
    """JSON that fits `schema`, or, without one, a text that `pattern` matches from end to end. `name`: the field of the
    request that says so; `field`: the one below it that complaints are about."""

    name: str
    field: str
    schema: dict[str, Any] | None = None
    pattern: str = ""

    @property
    def is_pattern(self) -> bool:
        return self.schema is None

    @property
    def kind(self) -> str:
        """What it is called in complaints."""
        return "pattern" if self.is_pattern else "schema"

    def grammar(self) -> str:
        """Of all such answers; it may have a problem."""
        return pattern_grammar(self.pattern) if self.schema is None else json_grammar(self.schema)
