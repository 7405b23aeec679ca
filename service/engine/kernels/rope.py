"""RoPE of q and k in place, and the write of k and v into the paged cache, in one launch for all heads of a token.

A bias of the QKV projection costs nothing there (cuBLAS and the GEMV add it in their epilogues), so none is taken here.
"""
# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from service.engine.kernels.overlap import launch_options, wait_for_inputs

BLOCK_HEADS = 4


@triton.jit
def turn(first, second, cos, sin):  # type: ignore[no-untyped-def]
    """Both halves of heads by their positions' angles, in fp32 and rounded to the heads' own type."""
    wide, other = first.to(tl.float32), second.to(tl.float32)
    return (wide * cos - other * sin).to(first.dtype), (other * cos + wide * sin).to(first.dtype)


@triton.jit
def rotate_and_cache_kernel(
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    positions: tl.tensor,
    places: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    table_stride: int,
    OVERLAPS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
) -> None:
    wait_for_inputs(OVERLAPS)
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS))[:, None]
    lane = tl.arange(0, HALF)[None, :]
    rotated = head < HEADS + KV_HEADS
    inside = head < HEADS + 2 * KV_HEADS
    here = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * (2 * HALF) + lane
    first = tl.load(here, mask=inside, other=0.0)
    second = tl.load(here + HALF, mask=inside, other=0.0)

    angle = tl.load(positions + token) * table_stride + lane
    c = tl.load(cos + angle).to(tl.float32)
    s = tl.load(sin + angle).to(tl.float32)
    new_first, new_second = turn(first, second, c, s)
    tl.store(here, new_first, mask=rotated)
    tl.store(here + HALF, new_second, mask=rotated)

    place = tl.load(places + token) * KV_HEADS
    key = k_cache + (place + head - HEADS) * (2 * HALF) + lane
    is_key = rotated & (head >= HEADS)
    tl.store(key, new_first, mask=is_key)
    tl.store(key + HALF, new_second, mask=is_key)
    value = v_cache + (place + head - HEADS - KV_HEADS) * (2 * HALF) + lane
    is_value = inside & (head >= HEADS + KV_HEADS)
    tl.store(value, first, mask=is_value)
    tl.store(value + HALF, second, mask=is_value)


def rotate_and_cache(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    places: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    overlaps: bool = False,
) -> None:
    """See `ops.RotateAndCache`; qkv and one layer's caches are contiguous, head_dim is a power of two."""
    kv_heads, head_dim = k_cache.shape[2:]
    all_heads = qkv.shape[1] // head_dim
    rotate_and_cache_kernel[(qkv.shape[0], triton.cdiv(all_heads, BLOCK_HEADS))](
        qkv,
        cos,
        sin,
        positions,
        places,
        k_cache,
        v_cache,
        cos.stride(0),
        HEADS=all_heads - 2 * kv_heads,
        KV_HEADS=kv_heads,
        HALF=head_dim // 2,
        BLOCK_HEADS=BLOCK_HEADS,
        num_warps=2,
        **launch_options(overlaps),
    )
