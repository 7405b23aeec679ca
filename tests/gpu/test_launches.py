"""What is decided on the very GPU at start: whether launches overlap, and which products are torch's."""

from dataclasses import replace

import pytest
import torch

from service.engine.config import INTERNLM3_8B
from service.engine.cuda.choose_paths import OVERLAP, proved_together
from service.engine.kernels.candidate import Candidate, ServedShapes
from service.engine.kernels.linear_check import matrices
from service.engine.kernels.ops import Ops, Product
from service.engine.kernels.race import race
from service.engine.kernels.selfcheck import Proof, prove, prove_candidates
from service.engine.kernels.tuning import tuning_for


@pytest.fixture(scope="module")
def served() -> ServedShapes:
    return ServedShapes(INTERNLM3_8B, 64, torch.bfloat16, torch.device("cuda"))


@pytest.fixture(scope="module")
def proof(served: ServedShapes) -> Proof:
    return proved_together(served, prove)


def test_launches_overlap_where_the_generation_can(proof: Proof) -> None:
    assert proof.degraded == []
    assert proof.overlaps == tuning_for(torch.cuda.get_device_capability()).overlaps


def test_overlapping_launches_stay_right_over_many_chains(served: ServedShapes, proof: Proof) -> None:
    for _ in range(10):
        assert prove_candidates([OVERLAP], served, proof.ops).degraded == []


def test_a_kernel_that_does_not_wait_is_found_out(served: ServedShapes, proof: Proof) -> None:
    """The check itself, on a real GPU: a norm that computes something else when it is recorded."""
    honest = proof.ops.add_rms_norm

    def hasty(
        x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stale = torch.roll(x, 1, dims=1) if torch.cuda.is_current_stream_capturing() else x
        return honest(stale, residual, weight, eps)

    wrong = replace(proof.ops, add_rms_norm=hasty)
    assert prove_candidates([Candidate("overlap", {}, OVERLAP.check)], served, wrong).degraded != []


def test_the_race_is_over_products_that_serve(served: ServedShapes, proof: Proof) -> None:
    raced = race(proof.ops, served)
    shapes = matrices(INTERNLM3_8B, INTERNLM3_8B.vocab_size)
    assert raced.outrun <= {
        Product(rows, *shape) for rows in (1, *proof.ops.few_rows, *proof.ops.many_rows) for shape in shapes
    }
    assert {product.rows for product in raced.parted} <= {*proof.ops.few_rows, *proof.ops.many_rows}
    rotating = proof.ops.rotating_attention
    assert raced.rotating_attention in (None, rotating)
    plain = Ops()
    assert replace(raced, outrun=plain.outrun, parted=plain.parted, rotating_attention=rotating) == proof.ops
