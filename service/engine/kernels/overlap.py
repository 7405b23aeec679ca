"""Programmatic dependent launch: a kernel's programs start while the one before still runs, and wait for its results.

Between two kernels of a CUDA graph lie 1 to 2 microseconds in which the GPU reads nothing: a tenth of a decode of 48
layers. Hopper and later can start a kernel's programs before that, as soon as those of the kernel before it have all
begun and left room (CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization").

The rule that keeps this right: before `wait_for_inputs` a kernel touches nothing but weights, which nobody writes. The
wait ends when the kernel before is complete and its writes are seen; since that one waited too, so is all before it.
Each lets the next one in before it waits itself: behind two small kernels, a product fetches its weights meanwhile.
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

PREFETCHED_BYTES = 512
"""Bytes of each piece that `prefetch_weights` asks for, in steps of what the L2 cache is sure to fetch at a time."""
ASKED = "".join(f"prefetch.global.L2 [$1+{offset}]; " for offset in range(0, PREFETCHED_BYTES, 64))
PREFETCH = tl.constexpr(f"{ASKED}mov.u32 $0, 0;")


@triton.jit
def wait_for_inputs(OVERLAPS: tl.constexpr):
    """Let the kernel after this one start, and wait for the one before; nothing for a kernel launched alone.

    Nobody starves: a kernel is let in when all programs of the one before it have a place on the GPU.
    """
    if OVERLAPS:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def prefetch_weights(pieces):
    """Ask the L2 cache for PREFETCHED_BYTES at each of the pointers `pieces`, without waiting for them.

    Not in bulk: that instruction is one for a whole warp, and would be run for its lanes one after the other.
    """
    tl.inline_asm_elementwise(
        PREFETCH,
        "=r,l",
        [pieces.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


def launch_options(overlaps: bool) -> dict[str, bool]:
    """What a launch of a kernel with the constant OVERLAPS is given."""
    # Triton's interpreter, and Triton for other devices, know no such option: it is not even named there.
    return {"OVERLAPS": True, "launch_pdl": True} if overlaps else {"OVERLAPS": False}
