"""The block pool and its prefix cache: sharing, eviction, and what they must never do."""

import pytest

from service.engine.kv_cache import SCRATCH_BLOCK, BlockPool, Lease

SIZE = 4


def tokens(count: int, first: int = 0) -> list[int]:
    return list(range(first, first + count))


def leased(pool: BlockPool, prompt: list[int], positions: int | None = None) -> Lease:
    lease = pool.lease(prompt, positions or len(prompt))
    assert lease is not None
    pool.check_integrity()
    return lease


def publish_prompt(pool: BlockPool, lease: Lease, prompt: list[int]) -> None:
    for position in pool.unpublished(lease, len(prompt)):
        pool.publish(lease, prompt[position * SIZE : (position + 1) * SIZE])
    pool.check_integrity()


def cache_prompt(pool: BlockPool, prompt: list[int]) -> list[int]:
    """Serve a prompt and end it; the blocks it had."""
    lease = leased(pool, prompt)
    blocks = lease.blocks
    publish_prompt(pool, lease, prompt)
    pool.release(lease)
    pool.check_integrity()
    return blocks


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (1, 4), (4, 0), (-3, 4)])
def test_a_pool_without_room_for_one_token_is_refused(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="at least 2 of 1"):
        BlockPool(num_blocks, block_size)


def test_the_scratch_block_is_never_given_out() -> None:
    pool = BlockPool(5, SIZE)
    lease = leased(pool, tokens(16))
    assert sorted(lease.blocks) == [1, 2, 3, 4]
    assert SCRATCH_BLOCK not in lease.blocks
    assert (pool.total, pool.used, pool.available) == (4, 4, 0)


@pytest.mark.parametrize(("positions", "blocks"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_a_lease_has_a_block_for_every_position(positions: int, blocks: int) -> None:
    assert len(leased(BlockPool(9, SIZE), [1], positions).blocks) == blocks


def test_a_lease_that_does_not_fit_takes_nothing() -> None:
    pool = BlockPool(5, SIZE)
    leased(pool, tokens(8))
    assert pool.lease(tokens(12, first=50), 12) is None
    assert pool.used == 2
    pool.check_integrity()


def test_released_blocks_can_be_had_again() -> None:
    pool = BlockPool(5, SIZE)
    for _ in range(10):
        pool.release(leased(pool, tokens(16)))
        assert (pool.used, pool.cached, pool.available) == (0, 0, 4)


def test_releasing_a_lease_again_frees_nothing_twice() -> None:
    pool = BlockPool(5, SIZE)
    lease = leased(pool, tokens(8))
    pool.release(lease)
    other = leased(pool, tokens(16))
    pool.release(lease)
    assert pool.used == len(other.blocks)
    pool.check_integrity()


def test_freeing_a_block_twice_is_an_error() -> None:
    pool = BlockPool(5, SIZE)
    lease = leased(pool, tokens(8))
    copy = Lease(list(lease.blocks), 0, 0, 0)
    pool.release(lease)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.release(copy)


def test_published_blocks_stay_findable_after_their_holder_ended() -> None:
    pool = BlockPool(9, SIZE)
    blocks = cache_prompt(pool, tokens(12))
    assert (pool.used, pool.cached) == (0, 3)
    lease = leased(pool, [*tokens(12), 99], 14)
    assert lease.blocks[:3] == blocks
    assert lease.cached_blocks == 3
    assert (pool.used, pool.cached) == (4, 0)


@pytest.mark.parametrize(
    ("prompt_length", "reused"), [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2), (11, 2), (12, 2), (13, 3)]
)
def test_the_last_prompt_token_is_always_computed_anew(prompt_length: int, reused: int) -> None:
    pool = BlockPool(12, SIZE)
    cache_prompt(pool, tokens(12))
    prompt = tokens(prompt_length)
    assert leased(pool, prompt).cached_blocks == reused


@pytest.mark.parametrize("changed", [0, 3, 4, 7])
def test_a_prefix_is_shared_up_to_the_first_block_that_differs(changed: int) -> None:
    pool = BlockPool(12, SIZE)
    cache_prompt(pool, tokens(12))
    prompt = tokens(13)
    prompt[changed] = 99
    assert leased(pool, prompt).cached_blocks == changed // SIZE


def test_equal_tokens_at_another_place_are_not_shared() -> None:
    pool = BlockPool(20, SIZE)
    cache_prompt(pool, [*tokens(4), *tokens(4, 10)])
    assert leased(pool, [*tokens(4, 10), *tokens(4), 1]).cached_blocks == 0


def test_colliding_hashes_do_not_share_a_block() -> None:
    """-1 and -2 have the same hash in CPython: a cache that trusted hashes would take one for the other."""
    pool = BlockPool(12, SIZE)
    cache_prompt(pool, [-1, 0, 0, 0])
    assert hash((0, (-1, 0, 0, 0))) == hash((0, (-2, 0, 0, 0)))
    assert leased(pool, [-2, 0, 0, 0, 5]).cached_blocks == 0
    assert leased(pool, [-1, 0, 0, 0, 5]).cached_blocks == 1


def test_a_block_is_not_findable_before_it_is_published() -> None:
    pool = BlockPool(12, SIZE)
    leased(pool, tokens(9))
    assert leased(pool, tokens(9)).cached_blocks == 0


def test_only_full_blocks_are_published() -> None:
    pool = BlockPool(12, SIZE)
    lease = leased(pool, tokens(11))
    assert [list(pool.unpublished(lease, written)) for written in (0, 3, 4, 7, 8, 11)] == [
        [],
        [],
        [0],
        [0],
        [0, 1],
        [0, 1],
    ]
    pool.publish(lease, tokens(4))
    assert list(pool.unpublished(lease, 8)) == [1]


def test_the_first_of_two_equal_blocks_is_the_findable_one() -> None:
    pool = BlockPool(12, SIZE)
    prompt = tokens(9)
    first, second = leased(pool, prompt), leased(pool, prompt)
    publish_prompt(pool, first, prompt)
    publish_prompt(pool, second, prompt)
    third = leased(pool, prompt)
    assert third.blocks[:2] == first.blocks[:2]
    for lease in (second, first, third):
        pool.release(lease)
        pool.check_integrity()
    assert (pool.used, pool.cached) == (0, 2)


def test_a_sequence_whose_prefix_was_published_by_another_can_publish_what_follows() -> None:
    pool = BlockPool(20, SIZE)
    prompt, answer = tokens(8), tokens(4, 40)
    first, second = leased(pool, prompt), leased(pool, prompt, 12)
    publish_prompt(pool, first, prompt)
    publish_prompt(pool, second, prompt)
    pool.publish(second, answer)
    shared, own = first.blocks, second.blocks
    pool.release(first)
    pool.check_integrity()  # `second` holds its twins: the chain below its answer must not be evicted
    pool.release(second)
    assert pool.cached == 3
    assert leased(pool, [*prompt, *answer, 1]).blocks[:3] == [*shared, own[2]]


def test_a_chain_that_branches_shares_the_trunk_only() -> None:
    pool = BlockPool(20, SIZE)
    trunk = tokens(8)
    one = cache_prompt(pool, [*trunk, *tokens(4, 20)])
    two = cache_prompt(pool, [*trunk, *tokens(4, 30)])
    assert one[:2] == two[:2]
    assert one[2] != two[2]
    assert pool.cached == 4


def test_cached_blocks_are_evicted_only_when_nothing_is_free() -> None:
    pool = BlockPool(6, SIZE)
    cache_prompt(pool, tokens(8))
    other = leased(pool, tokens(12, 50))
    assert pool.cached == 2
    pool.release(other)
    leased(pool, tokens(16, 50))
    assert pool.cached == 1


@pytest.mark.parametrize("evicted", [0, 1, 2, 3, 4])
def test_a_chain_is_evicted_from_its_tail(evicted: int) -> None:
    pool = BlockPool(6, SIZE)
    cache_prompt(pool, tokens(16))
    pool.release(leased(pool, tokens((1 + evicted) * SIZE, 50)))
    assert leased(pool, tokens(17)).cached_blocks == 4 - evicted


def test_the_least_recently_held_chain_is_evicted_first() -> None:
    pool = BlockPool(6, SIZE)
    old, new = tokens(8), tokens(8, 20)
    cache_prompt(pool, old)
    cache_prompt(pool, new)
    pool.release(leased(pool, [*old, 1]))  # held again: now `new` is the older one
    pool.release(leased(pool, tokens(12, 50)))
    touched = leased(pool, [*old, 1])
    assert touched.cached_blocks == 2
    pool.release(touched)
    assert leased(pool, [*new, 1]).cached_blocks == 0


def test_the_blocks_a_lease_is_about_to_share_do_not_count_as_room_for_it() -> None:
    pool = BlockPool(5, SIZE)
    cache_prompt(pool, tokens(16))
    assert pool.available == 4
    assert pool.lease(tokens(17), 17) is None
    assert pool.cached == 4
    pool.check_integrity()


def test_a_shared_prefix_makes_room_for_a_request_that_would_not_fit_alone() -> None:
    pool = BlockPool(6, SIZE)
    prompt = tokens(12)
    lease = leased(pool, prompt)
    publish_prompt(pool, lease, prompt)
    assert pool.lease(tokens(13, 50), 13) is None
    assert leased(pool, [*prompt, 1]).cached_blocks == 3


def test_a_uid_of_an_evicted_block_leads_nowhere() -> None:
    """The evicted block's number is used again for other tokens; its old children's keys must not fit under it."""
    pool = BlockPool(3, SIZE)
    first = cache_prompt(pool, tokens(8))
    second = cache_prompt(pool, tokens(8, 50))
    assert set(first) == set(second)
    assert leased(pool, [*tokens(4, 50), *tokens(4, 4)], 8).cached_blocks == 1


def test_with_the_prefix_cache_off_nothing_is_published() -> None:
    pool = BlockPool(9, SIZE, prefix_cache=False)
    cache_prompt(pool, tokens(12))
    assert pool.cached == 0
    assert leased(pool, tokens(13)).cached_blocks == 0


def test_forget_makes_every_cached_block_free_and_unfindable() -> None:
    pool = BlockPool(9, SIZE)
    cache_prompt(pool, tokens(12))
    pool.forget()
    pool.check_integrity()
    assert (pool.cached, pool.available) == (0, 8)
    assert leased(pool, tokens(13)).cached_blocks == 0


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda pool: pool._free.pop(), "lost or in two states"),
        (lambda pool: pool._free.append(pool._free[0]), "lost or in two states"),
        (lambda pool: pool._uid_of.popitem(), "no uid"),
        (lambda pool: pool._key_of.popitem(), "published twice"),
        (lambda pool: pool._idle.move_to_end(next(iter(pool._idle))), "evicted before its child"),
    ],
)
def test_check_integrity_sees_damage(damage, complaint: str) -> None:  # type: ignore[no-untyped-def]
    pool = BlockPool(9, SIZE)
    cache_prompt(pool, tokens(12))
    damage(pool)
    with pytest.raises(AssertionError, match=complaint):
        pool.check_integrity()
