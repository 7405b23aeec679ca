"""An attention that rotates serves when it is right: what the self-check finds out of one that is not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from service.engine.kernels.batch import DecodeBatch
from service.engine.kernels.candidate import Candidate, ServedShapes
from service.engine.kernels.decode_check import RotatedDecode, check_rotating_attention
from service.engine.kernels.ops import Angles, Caches, Heads, Ops
from service.engine.kernels.selfcheck import prove_candidates
from tests.engine.kernels.conftest import Subject
from tests.engine.kernels.test_selfcheck import CPU, LONG_CONTEXT
from tests.support.rotating import rotate_and_attend

Lie = Callable[[Heads, Angles, Caches, DecodeBatch, float], torch.Tensor]
LIARS: list[Lie] = []


def liar(lie: Lie) -> Lie:
    LIARS.append(lie)
    return lie


@liar
def takes_queries_as_they_are(heads: Heads, angles: Angles, *rest: Any) -> torch.Tensor:
    still = torch.ones_like(angles[0]), torch.zeros_like(angles[1])
    rotate_and_attend(heads, angles, *rest)
    right = rest[0][0].clone()
    result = rotate_and_attend(heads, still, *rest)
    rest[0][0].copy_(right)
    return result


@liar
def rotates_the_other_way(heads: Heads, angles: Angles, *rest: Any) -> torch.Tensor:
    return rotate_and_attend(heads, (angles[0], -angles[1]), *rest)


@liar
def stands_one_position_behind(heads: Heads, angles: Angles, *rest: Any) -> torch.Tensor:
    return rotate_and_attend(heads, (angles[0].roll(1, 0), angles[1].roll(1, 0)), *rest)


@liar
def does_not_see_the_new_token(
    heads: Heads, angles: Angles, caches: Caches, batch: DecodeBatch, scale: float
) -> torch.Tensor:
    result = rotate_and_attend(heads._replace(v=heads.v * 0), angles, caches, batch, scale)
    rotate_and_attend(heads, angles, caches, batch, scale)
    return result


@liar
def keeps_no_values(heads: Heads, angles: Angles, caches: Caches, *rest: Any) -> torch.Tensor:
    values = caches[1].clone()
    result = rotate_and_attend(heads, angles, caches, *rest)
    caches[1].copy_(values)
    return result


@liar
def keeps_keys_as_they_are(heads: Heads, angles: Angles, caches: Caches, *rest: Any) -> torch.Tensor:
    result = rotate_and_attend(heads, angles, caches, *rest)
    keys = caches[0].clone()
    rotate_and_attend(heads, (torch.ones_like(angles[0]), torch.zeros_like(angles[1])), caches, *rest)
    raw = caches[0].clone()
    caches[0].copy_(torch.where(keys == raw, keys, raw))
    return result


@liar
def writes_a_stray_value(heads: Heads, angles: Angles, caches: Caches, *rest: Any) -> torch.Tensor:
    result = rotate_and_attend(heads, angles, caches, *rest)
    caches[1][0, 0] = 1.0
    return result


@liar
def serves_eight_rows(heads: Heads, *rest: Any) -> torch.Tensor:
    result = rotate_and_attend(heads, *rest)
    result[8:] = 0
    return result


@liar
def raises(*_: Any) -> torch.Tensor:
    raise RuntimeError("ptxas fatal: out of registers")


def tried(attention: Any, shapes: ServedShapes) -> list[str]:
    candidate = Candidate("rotating_attention", {"rotating_attention": attention}, check_rotating_attention)
    proof = prove_candidates([candidate], shapes, Ops())
    assert (proof.ops.rotating_attention is attention) == (not proof.degraded)
    return proof.degraded


@pytest.mark.parametrize("shapes", [CPU, LONG_CONTEXT], ids=["short", "long"])
def test_what_is_right_serves(shapes: ServedShapes) -> None:
    assert tried(rotate_and_attend, shapes) == []


def test_the_kernel_serves(kernel_subject: Subject) -> None:
    shapes = replace(CPU, device=kernel_subject.device)
    fields = {name: getattr(kernel_subject.ops, name) for name in ("plan_decode", "rotating_attention")}
    candidate = Candidate("rotating_attention", fields, check_rotating_attention)
    assert prove_candidates([candidate], shapes, Ops()).degraded == []


@pytest.mark.parametrize("lie", LIARS)
def test_what_is_wrong_does_not(lie: Lie) -> None:
    (reason,) = tried(lie, CPU)
    assert reason.startswith("rotating_attention: ")


@pytest.mark.parametrize("has_kernel", [True, False])
def test_a_decode_gives_the_same_in_one_launch_and_in_two(has_kernel: bool) -> None:
    problem = RotatedDecode.of(CPU, [5, 40, 1])
    ops = replace(Ops(), rotating_attention=rotate_and_attend if has_kernel else None)
    expected = rotate_and_attend(
        Heads.of(problem.qkv.clone(), problem.config),
        problem.angles,
        (problem.caches[0].clone(), problem.caches[1].clone()),
        problem.batch,
        problem.scale,
    )
    assert torch.equal(problem.planned(ops).attend(ops), expected)
