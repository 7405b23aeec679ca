"""The paged KV cache's books: which block belongs to whom, and which blocks hold a prefix that can be found again.

Only numbers are kept here; the tensors are the runner's. A block's content may be written after the block was
published or given on, by steps in flight: that is sound because steps run in launch order, and whoever gets a
block uses it in a step that is launched later than every step of the block's former owner.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

SCRATCH_BLOCK = 0
"""Never given out: the rows that pad a batch write there."""

ROOT = 0
"""The parent of every first block."""

Key = tuple[int, tuple[int, ...]]
"""The uid of the block before, and this block's tokens: equal keys mean equal tokens from position 0 on."""


@dataclass(eq=False, slots=True)
class Lease:
    """What one sequence holds. It holds every published ancestor of every block it holds."""

    blocks: list[int]  # by position; the first `published` have been offered for reuse
    cached_blocks: int  # how many of `blocks` came from the prefix cache, written already
    published: int
    parent: int  # uid of the last published block, or of its twin
    twins: dict[int, int] = field(default_factory=dict)  # position -> the equal block that was published first


class BlockPool:
    """`num_blocks` KV blocks of `block_size` tokens with reference counts, and the prefix cache over them.

    A block is free, held by one or more leases, or idle: held by none, but findable by the tokens it holds until it
    is evicted, least recently held first. Leases let go of a chain's tail before its head, so that a block is evicted
    before its parent. Tokens are compared on every hit, and a uid is never used twice: no hash collision and no
    recycled block can lead one request to another's tokens.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool = True) -> None:
        if num_blocks < 2 or block_size < 1:
            raise ValueError(f"{num_blocks} blocks of {block_size} tokens: at least 2 of 1 are needed, one is scratch")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._prefix_cache = prefix_cache
        self._free = list(range(num_blocks - 1, SCRATCH_BLOCK, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._holders = [0] * num_blocks
        self._published: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}
        self._uid_of: dict[int, int] = {}
        self._uids = count(ROOT + 1)

    @property
    def total(self) -> int:
        """Blocks that can be given out."""
        return self.num_blocks - 1

    @property
    def cached(self) -> int:
        """Blocks nobody holds that can be found again."""
        return len(self._idle)

    @property
    def available(self) -> int:
        """Blocks a new lease can get."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks somebody holds."""
        return self.total - self.available

    def blocks_for(self, positions: int) -> int:
        """Blocks that many positions need."""
        return -(-positions // self.block_size)

    def lease(self, prompt_ids: list[int], positions: int) -> Lease | None:
        """Blocks for `positions` positions that begin with the prompt, or None while too few are available.

        Found prefix blocks are shared. The last prompt token is never among them: it is computed for its logits.
        """
        found, parent = self._find(prompt_ids)
        fresh = self.blocks_for(positions) - len(found)
        if fresh > self.available - sum(1 for block in found if not self._holders[block]):
            return None
        for block in found:
            self._hold(block)
        blocks = found + [self._take() for _ in range(fresh)]
        return Lease(blocks, cached_blocks=len(found), published=len(found), parent=parent)

    def unpublished(self, lease: Lease, written: int) -> range:
        """Positions in `lease.blocks` to publish now that the first `written` token positions are written."""
        return range(lease.published, written // self.block_size if self._prefix_cache else 0)

    def publish(self, lease: Lease, tokens: list[int]) -> None:
        """Offer the lease's first unpublished block, which holds `tokens`, for reuse.

        The step that fills it must have been launched. Where an equal block was published first, that one stays the
        findable one and is held as a twin, so that later blocks of this lease can hang on it.
        """
        block, key = lease.blocks[lease.published], (lease.parent, tuple(tokens))
        findable = self._published.setdefault(key, block)
        if findable == block:
            self._key_of[block] = key
            self._uid_of[block] = next(self._uids)
        else:
            self._hold(findable)
            lease.twins[lease.published] = findable
        lease.parent = self._uid_of[findable]
        lease.published += 1

    def release(self, lease: Lease) -> None:
        """Give everything back, the chain's tail first."""
        for position in reversed(range(len(lease.blocks))):
            self._drop(lease.blocks[position])
            if position in lease.twins:
                self._drop(lease.twins[position])
        lease.blocks = []
        lease.twins = {}

    def forget(self, leases: Iterable[Lease] = ()) -> None:
        """Empty the prefix cache: what the blocks hold is no longer to be trusted. `leases`, all that are held, publish
        nothing from now on: what their blocks hang on can't be found any more."""
        for lease in leases:
            lease.published = len(lease.blocks)
        self._free += self._idle
        for book in (self._idle, self._published, self._key_of, self._uid_of):
            book.clear()

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block is in exactly one state and every findable block can be reached."""
        held = {block for block, holders in enumerate(self._holders) if holders}
        states = [*self._free, *self._idle, *held]
        assert sorted(states) == list(range(1, self.num_blocks)), "a block is lost or in two states"
        assert {block: key for key, block in self._published.items()} == self._key_of, "a block is published twice"
        assert self._uid_of.keys() == self._key_of.keys(), "a published block has no uid"
        assert not self._key_of.keys() & set(self._free), "a free block can be found"
        self._check_chains()

    def _check_chains(self) -> None:
        block_of = {uid: block for block, uid in self._uid_of.items()}
        rank = {block: rank for rank, block in enumerate(self._idle)}
        for block, (parent, _) in self._key_of.items():
            if parent == ROOT:
                continue
            assert parent in block_of, "a block outlived its parent"
            before = block_of[parent]
            if self._holders[block]:
                assert self._holders[before], "a block is held without its parent"
            elif not self._holders[before]:
                assert rank[block] < rank[before], "a parent would be evicted before its child"

    def _find(self, prompt_ids: list[int]) -> tuple[list[int], int]:
        """The longest published chain that the prompt begins with, and the uid of its last block."""
        found: list[int] = []
        parent, size = ROOT, self.block_size
        for start in range(0, len(prompt_ids) - size, size):
            block = self._published.get((parent, tuple(prompt_ids[start : start + size])))
            if block is None:
                break
            found.append(block)
            parent = self._uid_of[block]
        return found, parent

    def _hold(self, block: int) -> None:
        if not self._holders[block]:
            del self._idle[block]
        self._holders[block] += 1

    def _take(self) -> int:
        block = self._free.pop() if self._free else self._evict()
        self._holders[block] = 1
        return block

    def _drop(self, block: int) -> None:
        assert self._holders[block], f"block {block} was freed twice"
        self._holders[block] -= 1
        if self._holders[block]:
            return
        if block in self._key_of:
            self._idle[block] = None
        else:
            self._free.append(block)

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._published[self._key_of.pop(block)]
        del self._uid_of[block]
        return block
