"""Drives a Core to the end of its work, as the step loop does, and sorts its events."""

from collections.abc import Iterable

from service.engine.base import Core, Event, Finish, FinishReason, GenerationRequest, MatchingCore, Token
from service.engine.core import NativeCore
from service.engine.grammars.gate import GrammarGate


def drain(core: Core, requests: Iterable[GenerationRequest]) -> list[Event]:
    """Add the requests, step until nothing is left to do; every event in order."""
    events = [event for request in requests for event in core.add(request)]
    while not core.idle:
        events += core.step()
    return events


def native(core: Core) -> NativeCore:
    """The native core of what `build_core` built."""
    inner = behind_gate(core)
    assert isinstance(inner, NativeCore)
    return inner


def behind_gate(core: Core) -> MatchingCore:
    """The core of what `build_core` built."""
    assert isinstance(core, GrammarGate)
    return core._core


def tokens_of(events: Iterable[Event]) -> dict[str, list[int]]:
    """The tokens of each request."""
    tokens: dict[str, list[int]] = {}
    for event in events:
        if isinstance(event, Token):
            tokens.setdefault(event.id, []).append(event.token)
    return tokens


def reasons_of(events: Iterable[Event]) -> dict[str, FinishReason]:
    """How each request ended; AssertionError when one ended twice."""
    reasons: dict[str, FinishReason] = {}
    for event in events:
        if isinstance(event, Finish):
            assert event.id not in reasons, f"{event.id} ended twice"
            reasons[event.id] = event.reason
    return reasons
