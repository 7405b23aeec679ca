"""The engine's figures beside what they are held against: a row per measure, a column per contender."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from tests.bench.load import Rates
from tests.bench.results_file import Line

ENGINE, LIMIT, REFERENCE, CONTINUOUS_BATCHING = "engine", "limit", "reference", "continuous_batching"


@dataclass(frozen=True)
class Measure:
    """What is measured, in seconds or by the second, and at which size: ("concurrent", 64)."""

    name: str
    size: str
    value: int
    is_time: bool = True


def measures_of(rates: Rates, size: str, value: int) -> Iterator[tuple[Measure, float]]:
    """Each figure of some requests with its measure."""
    for name, figure in asdict(rates).items():
        yield Measure(name, size, value, is_time=name != "tokens_per_second"), figure


class Table:
    """What a run has measured so far."""

    def __init__(self) -> None:
        self._rows: dict[Measure, dict[str, float]] = {}

    def put(self, measure: Measure, who: str, figure: float) -> None:
        """What a contender reached: seconds, or a rate."""
        self._rows.setdefault(measure, {})[who] = figure

    def figure(self, measure: Measure, who: str) -> float:
        """What somebody reached. Raises KeyError for who was not measured."""
        return self._rows[measure][who]

    def ratio(self, measure: Measure, other: str) -> float:
        """How many times as fast as another the engine is. Raises KeyError for who was not measured."""
        row = self._rows[measure]
        return row[other] / row[ENGINE] if measure.is_time else row[ENGINE] / row[other]

    def line(self, measure: Measure) -> Line:
        """The row so far, times in milliseconds, and the engine against the others.

        `over_reference` 7 is seven times as fast, be it a time or a rate; `of_limit` is the share of what is possible.
        """
        row = self._rows[measure]
        scale, suffix = (1e3, "_ms") if measure.is_time else (1, "")
        shown = {f"{who}{suffix}": round(figure * scale, 4) for who, figure in row.items()}
        others = [who for who in row if who != ENGINE and ENGINE in row]
        ratios = {_ratio_name(other): round(self.ratio(measure, other), 4) for other in others}
        return {"measure": measure.name, measure.size: measure.value} | shown | ratios


def _ratio_name(other: str) -> str:
    return f"of_{other}" if other == LIMIT else f"over_{other}"
