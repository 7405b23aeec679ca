"""The tree in the module's docstring is the tree in the code."""

import re

import pytest

from service import errors

DRAWN = re.findall(r"(?m)^[│├└─ ]*(\w+) +(\d{3})?", errors.__doc__ or "")


def classes() -> dict[str, type[errors.ServiceError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ServiceError)
    }


def test_every_class_is_drawn() -> None:
    assert set(classes()) <= {name for name, _ in DRAWN}


@pytest.mark.parametrize(("name", "status"), [pair for pair in DRAWN if pair[1]])
def test_the_drawn_status_is_the_class_status(name: str, status: str) -> None:
    assert classes()[name].status == int(status)


def test_codes_are_unique() -> None:
    codes = [error.code for error in classes().values()]
    assert len(codes) == len(set(codes))


def test_an_error_carries_field_and_retry() -> None:
    error = errors.QueueFull("full", retry_after=7)
    assert (str(error), error.retry_after, error.field) == ("full", 7, None)


def test_an_error_can_be_told_whatever_it_quotes() -> None:
    error = errors.InvalidRequest("a name of \ud800", field="reasoning.\ud800")
    assert (error.message, error.field) == ("a name of ?", "reasoning.?")
