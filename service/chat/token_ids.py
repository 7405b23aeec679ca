"""Token ids that a client names, of the model's."""

from collections.abc import Iterable

from service.errors import InvalidRequest


def require_known(ids: Iterable[int], vocab_size: int, field: str) -> None:
    """Raises InvalidRequest, which names `field`, for an id that the model has not: its own are below `vocab_size`."""
    largest = max(ids, default=0)
    if largest >= vocab_size:
        problem = f"{field} has {largest}, which is no token of the model's: they end at {vocab_size - 1}"
        raise InvalidRequest(problem, field=field)
