"""Continuous batching: which tokens of which request each step computes. Pure bookkeeping, no torch, no waiting.

A step is planned without knowing the tokens of the step in flight, so that a GPU never waits for the host. A
request that ends while a later step is in flight leaves one superfluous token there, which `commit` drops. Its
slot and blocks go to others at once: the step in flight was launched before any step of the next owner and so
writes before it, at a position that the next owner writes itself before it is read; and no block is published
that a step planned later still writes to.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import chain

from service.engine.admission import CompletionRate, Limits, queue_full, refusal
from service.engine.base import EngineStats, Event, Finish, FinishReason, GenerationRequest, Logprobs, Matcher, Token
from service.engine.kv_cache import BlockPool, Lease
from service.engine.steps.pace import PrefillPace, PromptBudget, is_long
from service.engine.steps.plan import Chunk, Decode, Sequence, StepPlan

RECOVERY = 64
"""Steps in which prompts' share doubles again, once one of them did not fit the memory."""


class Scheduler:
    """First come, first served, under a budget of tokens per step; see `plan`.

    A request waits until a slot and every block it can ever need are there, so that no step runs out of cache and
    nothing is preempted. Each request gets exactly one Finish, after all its Tokens.
    """

    def __init__(self, limits: Limits, pool: BlockPool, pace: PrefillPace | None = None) -> None:
        self._limits = limits
        self._pool = pool
        self._pace = pace
        self._open: dict[str, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._running: dict[Sequence, Lease] = {}  # in order of admission, which is order of arrival
        self._free_slots = list(reversed(range(limits.max_running)))
        self._head_blocked = False  # the first waiting request found too few blocks, and none came back since
        self._most_prompt_tokens = limits.step_tokens  # less for a while after a step that did not fit the memory
        self._rate = CompletionRate()
        self._prompt_tokens = self._cached_tokens = self._generation_tokens = self._steps = 0

    @property
    def idle(self) -> bool:
        """True when no request is open."""
        return not self._open

    def stats(self) -> EngineStats:
        """Counts and totals; the GPUs' memory is not known here."""
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_blocks_total=self._pool.total,
            kv_blocks_used=self._pool.used,
            kv_blocks_cached=self._pool.cached,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generation_tokens=self._generation_tokens,
            steps=self._steps,
        )

    def add(self, request: GenerationRequest, now: float, matcher: Matcher | None = None) -> list[Event]:
        """Let a request wait for its turn. Returns its Finish (REJECTED) when it never fits or too many wait.

        Only a rejection by a full queue has a `retry_after`. Requests that can run at once don't count as waiting.
        """
        problem = refusal(request, self._limits)
        if request.id in self._open:
            problem = f"a request with the id {request.id!r} is open already"
        if problem:
            return [Finish(id=request.id, reason=FinishReason.REJECTED, message=problem)]
        if not self._open:
            self._rate.resume(now)
        sequence = Sequence(request, now, matcher)
        self._waiting.append(sequence)
        if len(self._waiting) > self._limits.max_queue:
            for _ in self._admit(now):
                pass
        if len(self._waiting) > self._limits.max_queue:
            self._waiting.pop()
            waiting = len(self._waiting)
            return [queue_full(request.id, waiting, self._limits, self._rate.retry_after(waiting, now))]
        self._open[request.id] = sequence
        return []

    def cancel(self, request_id: str, now: float) -> list[Event]:
        """End a request with CANCELLED; [] when it is not open."""
        sequence = self._open.get(request_id)
        return [self._end(sequence, FinishReason.CANCELLED, now)] if sequence else []

    def expire(self, now: float) -> list[Event]:
        """End every request whose deadline has passed, waiting or running."""
        late = [s for s in chain(self._running, self._waiting) if s.request.deadline <= now]
        return [self._end(s, FinishReason.DEADLINE, now, "the deadline of the request passed") for s in late]

    def fail(self, message: str, now: float) -> list[Event]:
        """End every open request with ERROR and forget all cached prefixes: what the blocks hold is not known."""
        events: list[Event] = [self._end(s, FinishReason.ERROR, now, message) for s in [*self._running, *self._waiting]]
        self._pool.forget()
        return events

    def fail_newest(self, message: str, now: float) -> list[Event]:
        """End the request that was admitted last with ERROR; [] when none is running."""
        newest = next(reversed(self._running), None)
        return [self._end(newest, FinishReason.ERROR, now, message)] if newest else []

    def plan(self, now: float) -> StepPlan:
        """The next step; empty when there is nothing to compute.

        First one decode for every running sequence, then prefill in order of arrival with what is left of
        `step_tokens`, or less beside decodes when a pace is kept. Prefill gets a few tokens in any case, at most a
        block's worth, so that decodes can't starve it. Short prompts pass long ones whose share of the step is used up.
        Must be followed by `launched` or `withdraw`.
        """
        decodes, prefilling = self._plan_decodes()
        budget = self._prompt_budget(len(decodes), prefilling)
        starts: dict[Sequence, int] = {}
        for sequence in chain(prefilling, self._admit(now, budget)):
            starts[sequence] = sequence.scheduled
            _schedule(sequence, budget)
            if not budget.tokens:
                break
        budget.release()
        for sequence in starts:
            _schedule(sequence, budget)
        return StepPlan([Chunk(s, start, s.scheduled) for s, start in starts.items() if s.scheduled > start], decodes)

    def launched(self, plan: StepPlan) -> None:
        """The planned step was launched: what it writes of prompts may be shared with steps to come."""
        self._steps += 1
        grown = self._most_prompt_tokens + self._most_prompt_tokens // RECOVERY + 1
        self._most_prompt_tokens = min(grown, self._limits.step_tokens)
        for chunk in plan.chunks:
            self._publish(chunk.sequence, chunk.end)
            self._head_blocked = False  # it may begin as this one does, and need fewer blocks

    def measured(self, plan: StepPlan, seconds: float) -> None:
        """The step took so long on the device."""
        if self._pace is not None:
            self._pace.measured(len(plan.decodes), sum(c.end - c.start for c in plan.chunks), seconds)

    def withdraw(self, plan: StepPlan) -> None:
        """The planned step, the latest one, was not launched: its work is still to do."""
        for chunk in plan.chunks:
            chunk.sequence.scheduled = chunk.start
        for decode in plan.decodes:
            decode.sequence.scheduled = decode.position

    def shrink(self, plan: StepPlan) -> None:
        """The step did not fit the device's memory: the next ones compute half of its prompts' tokens, but no less than
        a block's worth, and some more with each that fits. Else whoever waits would come into the failed request's
        place, and fail next."""
        tokens = sum(chunk.end - chunk.start for chunk in plan.chunks)
        if tokens:
            self._most_prompt_tokens = min(self._most_prompt_tokens, max(tokens // 2, 1))

    def lose(self, plans: list[StepPlan]) -> list[Sequence]:
        """Launched steps, all that are in flight, came to nothing: their work is still to do.

        Returns the running sequences; the contents of their slots are undefined. Whoever has a part of its prompt to
        come, in the lost steps or later ones, computes it from the start: what it found in the prefix cache may have
        been another's part of the lost steps.
        """
        for plan in reversed(plans):
            self.withdraw(plan)
        for sequence in self._running:
            if sequence.scheduled < sequence.prompt_length:
                sequence.cached = sequence.scheduled = 0
        self._pool.forget(self._running.values())
        return list(self._running)

    def commit(self, plan: StepPlan, tokens: list[int], logprobs: Mapping[int, Logprobs], now: float) -> list[Event]:
        """Hand out the tokens of a step, one per entry of `plan.sampled`, and end the requests that are complete.
        `logprobs` are those of the tokens at these places."""
        events: list[Event] = []
        block_size = self._pool.block_size
        for place, (sequence, token) in enumerate(zip(plan.sampled, tokens, strict=True)):
            if sequence.ended:
                continue
            self._generation_tokens += 1
            reason = sequence.put(token)
            events.append(_token_event(sequence, token, logprobs.get(place)))
            # The KV of all tokens but the last is written by steps that were launched.
            written = sequence.prompt_length + len(sequence.output) - 1
            if not written % block_size:
                self._publish(sequence, written)
            if reason:
                events.append(self._end(sequence, reason, now, sequence.problem))
        return events

    def check_idle(self) -> None:
        """Raise AssertionError when blocks or slots are taken though no request is open. Costs nothing."""
        assert not self._open
        assert not self._pool.used, f"{self._pool.used} KV blocks are taken, but no request is open"
        assert len(self._free_slots) == self._limits.max_running, "a slot is taken, but no request is open"

    def check_integrity(self) -> None:
        """Raise AssertionError unless slots, blocks and requests account for each other. For tests: O(blocks)."""
        self._pool.check_integrity()
        slots = [*self._free_slots, *(sequence.slot for sequence in self._running)]
        assert sorted(slots) == list(range(self._limits.max_running)), "a slot is lost or taken twice"
        assert set(self._open.values()) == {*self._running, *self._waiting}, "an open request is nowhere"
        held = {b for lease in self._running.values() for b in (*lease.blocks, *lease.twins.values())}
        assert len(held) == self._pool.used, "a block is held by nobody"

    def _prompt_budget(self, decodes: int, prefilling: list[Sequence]) -> PromptBudget:
        """Most prompt tokens of the next step; half of the long prompts' share is kept for a short one that waits."""
        floor = min(self._pool.block_size, self._limits.step_tokens)
        most = max(min(self._limits.step_tokens - decodes, self._most_prompt_tokens), floor)
        budget = PromptBudget(most, most)
        if self._pace is not None:
            paced = self._pace.budget(decodes, len(prefilling) + len(self._waiting))
            budget = PromptBudget(min(paced.tokens, most), min(paced.of_long, most))
        if self._short_prompt_waits(prefilling):
            budget.keep_half()
        return budget

    def _short_prompt_waits(self, prefilling: list[Sequence]) -> bool:
        """Whether there is one that could be computed now."""
        admissible = self._waiting if self._free_slots and not self._head_blocked else ()
        return any(not is_long(sequence.prompt_length) for sequence in chain(prefilling, admissible))

    def _plan_decodes(self) -> tuple[list[Decode], list[Sequence]]:
        """A decode for every sequence that has tokens to come, and the sequences still in prefill."""
        decodes, prefilling = [], []
        for sequence in self._running:
            position = sequence.scheduled
            if position < sequence.prompt_length:
                prefilling.append(sequence)
            elif position < sequence.positions:
                decodes.append(Decode(sequence, position))
                sequence.scheduled = position + 1
        return decodes, prefilling

    def _admit(self, now: float, budget: PromptBudget | None = None) -> Iterator[Sequence]:
        """Admit waiting requests in order, one at each turn of the iterator, as long as slots and blocks last.

        Late admission pays: the later a prompt is looked up, the more of it may have been published by then. So a
        request for which the `budget` has no tokens stays queued, and later ones may pass it. If blocks are short,
        nobody may.
        """
        for sequence in list(self._waiting) if self._free_slots and not self._head_blocked else ():
            if budget and not budget.of(sequence.prompt_length):
                continue
            if not self._free_slots:
                return
            lease = self._pool.lease(sequence.request.prompt_ids, sequence.positions)
            if lease is None:
                # Whoever was passed may need fewer blocks, and comes first.
                self._head_blocked = sequence is self._waiting[0]
                return
            self._waiting.remove(sequence)
            self._running[sequence] = lease
            sequence.slot = self._free_slots.pop()
            sequence.blocks = lease.blocks
            sequence.cached = sequence.scheduled = lease.cached_blocks * self._pool.block_size
            sequence.admitted = now
            self._prompt_tokens += sequence.prompt_length
            self._cached_tokens += sequence.cached
            yield sequence

    def _publish(self, sequence: Sequence, written: int) -> None:
        """Offer the sequence's blocks for reuse that are full once `written` positions are written."""
        lease, size = self._running[sequence], self._pool.block_size
        for position in self._pool.unpublished(lease, written):
            self._pool.publish(lease, _tokens(sequence, position * size, (position + 1) * size))

    def _end(self, sequence: Sequence, reason: FinishReason, now: float, message: str = "") -> Finish:
        """Give back what a request holds; its one Finish."""
        del self._open[sequence.request.id]
        sequence.ended = True
        lease = self._running.pop(sequence, None)
        if lease is None:
            self._waiting.remove(sequence)
        else:
            self._pool.release(lease)
            self._free_slots.append(sequence.slot)
        self._head_blocked = False
        if reason is not FinishReason.ERROR:
            self._rate.count(now)
        queued = lease is None and reason is FinishReason.DEADLINE
        of_grammar = reason is FinishReason.REJECTED and bool(sequence.problem)
        return Finish(sequence.request.id, reason, message, queued=queued, of_grammar=of_grammar)


def _token_event(sequence: Sequence, token: int, logprobs: Logprobs | None) -> Token:
    request_id = sequence.request.id
    if len(sequence.output) > 1:
        return Token(request_id, token, logprobs=logprobs)
    return Token(request_id, token, sequence.admitted - sequence.arrival, sequence.cached, logprobs)


def _schedule(sequence: Sequence, budget: PromptBudget) -> None:
    """Plan as much more of the prompt as the budget has for it."""
    length = sequence.prompt_length
    sequence.scheduled += budget.grant(length, length - sequence.scheduled)


def _tokens(sequence: Sequence, start: int, end: int) -> list[int]:
    """The tokens at positions start <= i < end of prompt and output."""
    prompt = sequence.request.prompt_ids
    if end <= len(prompt):
        return prompt[start:end]
    offset = len(prompt)
    return prompt[start:] + sequence.output[max(start - offset, 0) : end - offset]
