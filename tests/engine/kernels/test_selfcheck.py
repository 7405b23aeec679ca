"""What serves: kernels that agree. What does not: those that lie, raise, leave places unwritten, or cannot be had."""

import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from service.engine import sampling
from service.engine.config import ModelConfig
from service.engine.defaults import MOST_BIASED, Quantization
from service.engine.kernels import checks, decode_check, linear_check, sample_check, torch_ops
from service.engine.kernels.batch import DecodeBatch, DecodeInputs
from service.engine.kernels.candidate import Candidate, Disagreement, ServedShapes, require_close
from service.engine.kernels.ops import AddNorm, Affine, Ops
from service.engine.kernels.selfcheck import REASON_LENGTH, prove, prove_candidates
from service.engine.kernels.tuning import CHAINS, Tuning
from service.engine.steps.slots import Slots
from service.errors import EngineFailed
from tests.engine.kernels.conftest import HAS_GPU, INTERPRETED, INTERPRETS, Subject

CONFIG = ModelConfig(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_layers=1,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    max_positions=200,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    qkv_bias=True,
    o_bias=False,
    mlp_bias=False,
    tied_head=True,
)
CPU = ServedShapes(CONFIG, 16, torch.float32, torch.device("cpu"))
LONG_CONTEXT = replace(CPU, config=replace(CONFIG, max_positions=8000))


def off_by_one_percent(x: torch.Tensor) -> torch.Tensor:
    return torch_ops.silu_mul(x) * 1.01


def last_row_forgotten(x: torch.Tensor) -> torch.Tensor:
    result = torch_ops.silu_mul(x)
    result[-1] = torch.nan
    return result


def does_not_compile(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("ptxas fatal: out of registers\nand a long listing")


def takes_the_newest_token_for_granted(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, batch: DecodeBatch, scale: float
) -> torch.Tensor:
    shorter = replace(batch, lengths=(batch.lengths - 1).clamp_min(1))
    return torch_ops.decode_attention(q, k_cache, v_cache, shorter, scale)


def ignores_the_block_table(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, batch: DecodeBatch, scale: float
) -> torch.Tensor:
    straight = torch.arange(batch.block_tables.numel(), dtype=torch.int32).view_as(batch.block_tables)
    straight = straight.clamp_max(k_cache.shape[0] - 1)
    return torch_ops.decode_attention(q, k_cache, v_cache, replace(batch, block_tables=straight), scale)


def forgets_the_bias(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gated: bool = False
) -> torch.Tensor:
    return Ops().linear(x, weight, None, gated)


def forgets_the_residual(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    normed, _ = torch_ops.add_rms_norm(x, residual, weight, eps)
    return normed, x


def does_not_write_the_cache(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, places: torch.Tensor, *_: Any
) -> None:
    spare = torch.zeros(2, 4, 16, CONFIG.num_kv_heads, CONFIG.head_dim)
    torch_ops.rotate_and_cache(qkv, cos, sin, positions, places, spare[0], spare[1])


def draws_the_best(logits: torch.Tensor, *_: Any) -> torch.Tensor:
    return logits.argmax(dim=-1)


def samples_by(change: Callable[[sampling.Rows, torch.Tensor], sampling.Rows]) -> Callable[..., torch.Tensor]:
    """A sampler that takes other parameters than the slots', changed in the light of the logits."""

    def sample(logits: torch.Tensor, slots: Slots, numbers: torch.Tensor, methods: Any) -> torch.Tensor:
        rows = change(slots.rows(numbers), logits)
        tokens = sampling.sample(logits, rows, slots.positions[numbers] + 1, methods)
        slots.advance(numbers, tokens)
        return tokens

    sample.__name__ = change.__name__
    return sample


@samples_by
def ignores_top_p(rows: sampling.Rows, _: torch.Tensor) -> sampling.Rows:
    return replace(rows, top_p=torch.ones_like(rows.top_p))


@samples_by
def ignores_top_k(rows: sampling.Rows, _: torch.Tensor) -> sampling.Rows:
    is_few = rows.method == sampling.Method.CANDIDATES
    return replace(rows, top_k=is_few * sampling.TOP_K_LIMIT)


@samples_by
def does_not_renormalise_after_top_k(rows: sampling.Rows, logits: torch.Tensor) -> sampling.Rows:
    """top_p as a share of the whole vocabulary's probability, not of what top_k left of it."""
    scores = (
        sampling.penalize(logits.float(), (rows.marks & sampling.SEEN).bool(), rows.penalty)
        / rows.temperature.clamp_min(1e-9)[:, None]
    )
    ranked = scores.softmax(dim=-1).sort(dim=-1, descending=True).values
    kept = ranked.cumsum(dim=-1).gather(1, (rows.top_k.clamp(1, scores.shape[1]) - 1)[:, None]).squeeze(1)
    return replace(
        rows, top_p=torch.where((rows.top_k > 0) & (rows.top_p < 1), (rows.top_p / kept).clamp(max=1.0), rows.top_p)
    )


@samples_by
def ignores_min_p(rows: sampling.Rows, _: torch.Tensor) -> sampling.Rows:
    return replace(rows, log_min_p=torch.full_like(rows.log_min_p, float("-inf")))


@samples_by
def ignores_the_frequency(rows: sampling.Rows, _: torch.Tensor) -> sampling.Rows:
    return replace(rows, frequency=torch.zeros_like(rows.frequency))


@samples_by
def ignores_the_bias(rows: sampling.Rows, _: torch.Tensor) -> sampling.Rows:
    return replace(rows, bias=torch.zeros_like(rows.bias))


@samples_by
def adds_the_first_bias_alone(rows: sampling.Rows, _: torch.Tensor) -> sampling.Rows:
    bias = rows.bias.clone()
    bias[:, 2 : 1 + MOST_BIASED] = 0
    bias[:, 2 + MOST_BIASED :] = 0
    return replace(rows, bias=bias)


@samples_by
def ignores_the_presence(rows: sampling.Rows, _: torch.Tensor) -> sampling.Rows:
    return replace(rows, presence=torch.zeros_like(rows.presence))


def forgets_to_count(logits: torch.Tensor, slots: Slots, numbers: torch.Tensor, methods: Any) -> torch.Tensor:
    tokens = torch_ops.sample(logits, slots, numbers, methods)
    slots.parameters.marks[numbers, tokens] -= sampling.ONCE
    return tokens


@samples_by
def ignores_the_penalty(rows: sampling.Rows, _: torch.Tensor) -> sampling.Rows:
    return replace(rows, penalty=torch.ones_like(rows.penalty))


def does_not_advance(logits: torch.Tensor, slots: Slots, numbers: torch.Tensor, methods: Any) -> torch.Tensor:
    return sampling.sample(logits, slots.rows(numbers), slots.positions[numbers] + 1, methods)


def advances_the_padding(logits: torch.Tensor, slots: Slots, numbers: torch.Tensor, methods: Any) -> torch.Tensor:
    tokens = torch_ops.sample(logits, slots, numbers, methods)
    slots.positions[slots.spare] += 1
    return tokens


@samples_by
def ignores_what_is_forbidden(rows: sampling.Rows, _: torch.Tensor) -> sampling.Rows:
    return replace(rows, marks=rows.marks & sampling.SEEN)


def takes_forbidden_tokens_for_seen(logits: torch.Tensor, slots: Slots, numbers: torch.Tensor, methods: Any) -> Any:
    rows = slots.rows(numbers)
    marks = (rows.marks > 0).to(torch.uint8) * sampling.SEEN
    tokens = sampling.sample(logits, replace(rows, marks=marks), slots.positions[numbers] + 1, methods)
    slots.advance(numbers, tokens)
    return tokens


def forgets_what_was_seen(logits: torch.Tensor, slots: Slots, numbers: torch.Tensor, methods: Any) -> torch.Tensor:
    before = slots.parameters.marks.clone()
    tokens = torch_ops.sample(logits, slots, numbers, methods)
    slots.parameters.marks.copy_(before)
    return tokens


def forgets_rows_from_64_on(x: torch.Tensor) -> torch.Tensor:
    result = torch_ops.silu_mul(x)
    result[64:] = 0
    return result


def norms_64_rows(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    normed, total = torch_ops.add_rms_norm(x, residual, weight, eps)
    normed[64:] = 0
    return normed, total


def norms_without_eps(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch_ops.add_rms_norm(x, residual, weight, 0.0)


def rotates_512_positions(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, *rest: Any
) -> None:
    torch_ops.rotate_and_cache(qkv, cos, sin, positions.clamp_max(511), *rest)


def rotates_the_other_way(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *rest: Any) -> None:
    torch_ops.rotate_and_cache(qkv, cos, -sin, *rest)


def writes_a_stray_key(*arguments: Any) -> None:
    torch_ops.rotate_and_cache(*arguments)
    arguments[5][0, 1] = 7.0


def attends_to_1600_tokens(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, batch: DecodeBatch, scale: float
) -> torch.Tensor:
    return torch_ops.decode_attention(q, k_cache, v_cache, replace(batch, lengths=batch.lengths.clamp_max(1600)), scale)


def attends_for_8_rows(*arguments: Any) -> torch.Tensor:
    result = torch_ops.decode_attention(*arguments)
    result[8:] *= 2
    return result


def reads_behind_the_end(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, batch: DecodeBatch, scale: float
) -> torch.Tensor:
    """With a weight of zero, as a mask on the scores alone would: only NaN shows it."""
    ends = (batch.lengths.long() - 1) // k_cache.shape[1]
    last = batch.block_tables[batch.slots, ends].long()
    stray = v_cache[last].float().sum(dim=(1, 2, 3)) * 0.0
    return torch_ops.decode_attention(q, k_cache, v_cache, batch, scale) + stray[:, None, None].to(q.dtype)


def multiplies_2_3_and_16_rows(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gated: bool = False
) -> torch.Tensor:
    return Ops().linear(x, weight, bias, gated) * (1 if x.shape[0] in (2, 3, 16) else 2)


def gates_with_the_wrong_half(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gated: bool = False
) -> torch.Tensor:
    product = Ops().linear(x, weight, bias)
    return torch_ops.silu_mul(product.roll(product.shape[1] // 2, dims=1)) if gated else product


def norm_linear_without_bias(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return Ops().norm_linear(*arguments[:5], None, *arguments[6:])


def norm_linear_without_eps(x: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    residual, norm_weight, _, *rest = arguments
    return Ops().norm_linear(x, residual, norm_weight, 0.0, *rest)


def norm_linear_without_its_weight(x: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    residual, norm_weight, *rest = arguments
    return Ops().norm_linear(x, residual, torch.ones_like(norm_weight), *rest)


def norm_linear_that_keeps_the_old_residual(x: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return Ops().norm_linear(x, *arguments)[0], x


def linked(
    change: Callable[..., tuple[torch.Tensor, torch.Tensor]],
) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """A chain that is told everything by name, so that a change can be of one thing."""

    def chain(
        x: torch.Tensor, first: Affine, norm: AddNorm, second: Affine, gated: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return change(x=x, first=first, norm=norm, second=second, gated=gated)

    chain.__name__ = change.__name__
    return chain


@linked
def chain_without_the_residual(**told: Any) -> tuple[torch.Tensor, torch.Tensor]:
    norm = told["norm"]
    return Ops().chain(**told | {"norm": norm._replace(residual=torch.zeros_like(norm.residual))})


@linked
def chain_that_keeps_the_old_residual(**told: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return Ops().chain(**told)[0], told["norm"].residual


@linked
def chain_without_eps(**told: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return Ops().chain(**told | {"norm": told["norm"]._replace(eps=0.0)})


@linked
def chain_without_the_norms_weight(**told: Any) -> tuple[torch.Tensor, torch.Tensor]:
    norm = told["norm"]
    return Ops().chain(**told | {"norm": norm._replace(weight=torch.ones_like(norm.weight))})


@linked
def chain_without_its_first_bias(**told: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return Ops().chain(**told | {"first": Affine(told["first"].weight)})


@linked
def chain_without_bias_is_doubled(**told: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Wrong only where a product has none: another variant of the kernel."""
    product, total = Ops().chain(**told)
    return product * (1 if told["first"].bias is not None else 2), total


@linked
def chain_of_output_and_gate_alone(**told: Any) -> tuple[torch.Tensor, torch.Tensor]:
    product, total = Ops().chain(**told)
    return product * (1 if told["gated"] else 2), total


@linked
def chain_that_gates_never(**told: Any) -> tuple[torch.Tensor, torch.Tensor]:
    product, total = Ops().chain(**told | {"gated": False})
    return product[:, : product.shape[1] // 2] if told["gated"] else product, total


@linked
def chain_of_more_than_12_rows(**told: Any) -> tuple[torch.Tensor, torch.Tensor]:
    product, total = Ops().chain(**told)
    return product * (1 if len(product) > 12 else 2), total


def check_few_rows_chain(ops: Ops, shapes: ServedShapes) -> None:
    linear_check.check_chain(ops, shapes, (9, 11, 16))


def check_one_row(ops: Ops, shapes: ServedShapes) -> None:
    linear_check.check_linear(ops, shapes, (1,))


def check_few_rows(ops: Ops, shapes: ServedShapes) -> None:
    linear_check.check_linear(ops, shapes, range(2, 17))


def locates_the_place_before(slots: Slots, numbers: torch.Tensor, block_size: int) -> DecodeInputs:
    found = torch_ops.locate(slots, numbers, block_size)
    return replace(found, places=(found.places - 1).clamp_min(0))


def locates_without_the_block_table(slots: Slots, numbers: torch.Tensor, block_size: int) -> DecodeInputs:
    found = torch_ops.locate(slots, numbers, block_size)
    return replace(found, places=found.positions)


def locates_lengths_without_the_new_token(slots: Slots, numbers: torch.Tensor, block_size: int) -> DecodeInputs:
    found = torch_ops.locate(slots, numbers, block_size)
    return replace(found, lengths=found.lengths - 1)


def located(change: Callable[[DecodeInputs], DecodeInputs]) -> Callable[..., DecodeInputs]:
    """What torch locates, changed."""

    def locate(slots: Slots, numbers: torch.Tensor, block_size: int) -> DecodeInputs:
        return change(torch_ops.locate(slots, numbers, block_size))

    locate.__name__ = change.__name__
    return locate


@located
def locates_lengths_of_another_type(found: DecodeInputs) -> DecodeInputs:
    return replace(found, lengths=found.lengths.long())


@located
def locates_128_rows(found: DecodeInputs) -> DecodeInputs:
    return replace(found, tokens=torch.where(torch.arange(len(found.tokens)) < 128, found.tokens, 0))


@located
def locates_batches_of_more_than_4(found: DecodeInputs) -> DecodeInputs:
    return found if len(found.tokens) > 4 else replace(found, tokens=found.tokens + 1)


@located
def misplaces_the_padding(found: DecodeInputs) -> DecodeInputs:
    return replace(found, places=found.places.masked_fill(found.places == 0, 1))


def takes_rows_for_slots(slots: Slots, numbers: torch.Tensor, block_size: int) -> DecodeInputs:
    rows = torch.arange(len(numbers))
    return torch_ops.locate(slots, torch.where(numbers == slots.spare, numbers, rows), block_size)


def finds_first_blocks_alone(slots: Slots, numbers: torch.Tensor, block_size: int) -> DecodeInputs:
    found = torch_ops.locate(slots, numbers, block_size)
    return replace(found, places=slots.tables[numbers, 0].long() * block_size + found.positions % block_size)


def samples_by_rows_for_slots(logits: torch.Tensor, slots: Slots, numbers: torch.Tensor, methods: Any) -> torch.Tensor:
    rows = torch.where(numbers == slots.spare, numbers, torch.arange(len(numbers)))
    tokens = sampling.sample(logits, slots.rows(rows), slots.positions[numbers] + 1, methods)
    slots.advance(numbers, tokens)
    return tokens


LIARS: list[tuple[str, Any, Callable[[Ops, ServedShapes], None]]] = [
    ("silu_mul", off_by_one_percent, checks.check_silu_mul),
    ("silu_mul", last_row_forgotten, checks.check_silu_mul),
    ("silu_mul", does_not_compile, checks.check_silu_mul),
    ("add_rms_norm", forgets_the_residual, checks.check_add_rms_norm),
    ("rotate_and_cache", does_not_write_the_cache, checks.check_rotate_and_cache),
    ("locate", locates_the_place_before, checks.check_locate),
    ("locate", locates_without_the_block_table, checks.check_locate),
    ("locate", locates_lengths_without_the_new_token, checks.check_locate),
    ("locate", locates_lengths_of_another_type, checks.check_locate),
    ("locate", locates_128_rows, checks.check_locate),
    ("locate", locates_batches_of_more_than_4, checks.check_locate),
    ("locate", misplaces_the_padding, checks.check_locate),
    ("locate", takes_rows_for_slots, checks.check_locate),
    ("locate", finds_first_blocks_alone, checks.check_locate),
    ("decode_attention", takes_the_newest_token_for_granted, decode_check.check_decode_attention),
    ("decode_attention", ignores_the_block_table, decode_check.check_decode_attention),
    ("silu_mul", forgets_rows_from_64_on, checks.check_silu_mul),
    ("add_rms_norm", norms_64_rows, checks.check_add_rms_norm),
    ("add_rms_norm", norms_without_eps, checks.check_add_rms_norm),
    ("rotate_and_cache", rotates_512_positions, checks.check_rotate_and_cache),
    ("rotate_and_cache", rotates_the_other_way, checks.check_rotate_and_cache),
    ("rotate_and_cache", writes_a_stray_key, checks.check_rotate_and_cache),
    ("decode_attention", attends_to_1600_tokens, decode_check.check_decode_attention),
    ("decode_attention", attends_for_8_rows, decode_check.check_decode_attention),
    ("decode_attention", reads_behind_the_end, decode_check.check_decode_attention),
    ("one_row_linear", forgets_the_bias, check_one_row),
    ("one_row_linear", gates_with_the_wrong_half, check_one_row),
    ("few_rows_linear", forgets_the_bias, check_few_rows),
    ("few_rows_linear", gates_with_the_wrong_half, check_few_rows),
    ("few_rows_linear", multiplies_2_3_and_16_rows, check_few_rows),
    ("one_row_norm_linear", norm_linear_without_bias, linear_check.check_norm_linear),
    ("one_row_norm_linear", norm_linear_without_eps, linear_check.check_norm_linear),
    ("one_row_norm_linear", norm_linear_without_its_weight, linear_check.check_norm_linear),
    ("one_row_norm_linear", norm_linear_that_keeps_the_old_residual, linear_check.check_norm_linear),
    ("few_rows_chain", chain_without_the_residual, check_few_rows_chain),
    ("few_rows_chain", chain_that_keeps_the_old_residual, check_few_rows_chain),
    ("few_rows_chain", chain_without_eps, check_few_rows_chain),
    ("few_rows_chain", chain_without_the_norms_weight, check_few_rows_chain),
    ("few_rows_chain", chain_without_its_first_bias, check_few_rows_chain),
    ("few_rows_chain", chain_without_bias_is_doubled, check_few_rows_chain),
    ("few_rows_chain", chain_of_output_and_gate_alone, check_few_rows_chain),
    ("few_rows_chain", chain_that_gates_never, check_few_rows_chain),
    ("few_rows_chain", chain_of_more_than_12_rows, check_few_rows_chain),
    ("sample", draws_the_best, sample_check.check_sample),
    ("sample", ignores_top_p, sample_check.check_sample),
    ("sample", ignores_top_k, sample_check.check_sample),
    ("sample", does_not_renormalise_after_top_k, sample_check.check_sample),
    ("sample", ignores_the_penalty, sample_check.check_sample),
    ("sample", ignores_min_p, sample_check.check_sample),
    ("sample", ignores_the_frequency, sample_check.check_sample),
    ("sample", ignores_the_presence, sample_check.check_sample),
    ("sample", ignores_the_bias, sample_check.check_sample),
    ("sample", adds_the_first_bias_alone, sample_check.check_sample),
    ("sample", forgets_to_count, sample_check.check_sample),
    ("sample", ignores_what_is_forbidden, sample_check.check_sample),
    ("sample", takes_forbidden_tokens_for_seen, sample_check.check_sample),
    ("sample", samples_by_rows_for_slots, sample_check.check_sample),
    ("sample", does_not_advance, sample_check.check_sample),
    ("sample", advances_the_padding, sample_check.check_sample),
    ("sample", forgets_what_was_seen, sample_check.check_sample),
]


@pytest.mark.parametrize(
    ("field", "kernel", "check"), LIARS, ids=[f"{field}-{kernel.__name__}" for field, kernel, _ in LIARS]
)
def test_a_kernel_that_is_wrong_is_left_out_and_named(
    field: str, kernel: Any, check: Callable[[Ops, ServedShapes], None], caplog: pytest.LogCaptureFixture
) -> None:
    plain = Ops()
    proof = prove_candidates([Candidate("suspect", {field: kernel}, check)], LONG_CONTEXT, plain)
    assert proof.ops == plain
    (reason,) = proof.degraded
    assert reason.startswith("suspect: ")
    assert "\n" not in reason
    assert len(reason) <= REASON_LENGTH
    assert "suspect" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("check", dict.fromkeys(check for _, _, check in LIARS))
def test_what_is_right_passes_every_check(check: Callable[[Ops, ServedShapes], None], dtype: torch.dtype) -> None:
    check(Ops(), replace(LONG_CONTEXT, dtype=dtype))


def test_one_liar_does_not_cost_the_others_their_place() -> None:
    honest = Candidate("honest", {"silu_mul": lambda x: torch_ops.silu_mul(x)}, checks.check_silu_mul)
    liar = Candidate("liar", {"sample": draws_the_best}, sample_check.check_sample)
    proof = prove_candidates([liar, honest], CPU, Ops())
    assert proof.ops.silu_mul is honest.fields["silu_mul"]
    assert proof.ops.sample is Ops().sample
    assert [reason.split(":")[0] for reason in proof.degraded] == ["liar"]


# What lies outside the vocabulary becomes minus infinity: as on a GPU.
@pytest.mark.filterwarnings("ignore:overflow encountered in divide:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.skipif(not INTERPRETS, reason="the compiled ones are proved below")
def test_every_kernel_of_ours_proves_itself(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(sample_check, "DRAWS", 1)  # an interpreted draw takes a tenth of a second
    from service.engine.kernels.candidates import candidates

    one_tile = replace(INTERPRETED, rows={16: INTERPRETED.rows[16]})  # the others have tests of their own
    proof = prove_candidates(candidates(one_tile, 4), replace(CPU, dtype=dtype), Ops(few_rows=(16,)))
    assert proof.degraded == []
    ops = proof.ops
    served = (ops.one_row_norm_linear, ops.few_rows_linear, ops.few_rows_chain, ops.chunk_attention)
    assert None not in served


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU or INTERPRETS, reason="needs an NVIDIA GPU and TRITON_INTERPRET unset")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_kernel_of_ours_proves_itself_on_this_gpu(dtype: torch.dtype) -> None:
    served = replace(CONFIG, vocab_size=128_512, hidden_size=4096, intermediate_size=10_240, num_heads=32, head_dim=128)
    proof = prove(ServedShapes(served, 64, dtype, torch.device("cuda")))
    assert proof.degraded == []


def test_a_kernel_that_leaves_the_device_unusable_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other kernel can be proved after it, and torch cannot serve either."""

    def fails(_: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")

    def poisons(ops: Ops, shapes: ServedShapes) -> None:
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    wanted = [Candidate("rogue", {}, poisons), Candidate("next", {}, lambda ops, shapes: pytest.fail("was tried"))]
    with pytest.raises(EngineFailed, match="rogue left cuda unusable: CUDA error: an illegal memory access") as failed:
        prove_candidates(wanted, replace(CPU, device=torch.device("cuda")), Ops())
    assert "DSA" not in str(failed.value)


def test_a_cpu_serves_with_torch_and_calls_that_no_degradation() -> None:
    proof = prove(CPU)
    assert proof.ops == Ops()
    assert proof.degraded == []


FEW_ROWS = (16, 32, 64), ()
ALL_ROWS = (16, 32, 64), (128, 192, 256)
SERVED, HALF, WIDE = torch.bfloat16, torch.float16, torch.float32
MANY = {"many_rows_linear", "many_rows_chain"}


@pytest.mark.parametrize(
    ("capability", "dtype", "quantization", "alone", "overlaps", "rows", "left_out"),
    [
        ((9, 0), SERVED, "none", False, True, ALL_ROWS, set()),
        ((9, 0), SERVED, "int8", False, True, ((16, 32, 64), (128, 192, 256, 384, 512, 1024)), set()),
        ((9, 0), WIDE, "none", False, True, FEW_ROWS, MANY),
        ((8, 6), WIDE, "int8", False, False, ((16, 32, 64, 96, 128, 256), ()), MANY),
        ((9, 0), SERVED, "none", True, False, ALL_ROWS, set()),
        ((8, 9), SERVED, "none", False, False, ALL_ROWS, set()),
        ((9, 0), HALF, "none", False, True, ALL_ROWS, CHAINS),
        ((7, 5), HALF, "none", False, False, ((16,), ()), {"chunk_attention", *MANY, *CHAINS}),
        ((7, 5), HALF, "int8", False, False, ((16, 24, 32, 64), ()), {"chunk_attention", *MANY, *CHAINS}),
    ],
)
def test_a_gpu_is_offered_what_its_generation_can(
    capability: tuple[int, int],
    dtype: torch.dtype,
    quantization: Quantization,
    alone: bool,
    overlaps: bool,
    rows: tuple[tuple[int, ...], tuple[int, ...]],
    left_out: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton")
    from service.engine.kernels import candidates, selfcheck

    offered: list[set[str]] = []
    tunings: list[Any] = []
    all_of_them = candidates.candidates

    def noting(tuning: Any, multiprocessors: int, kept: Quantization) -> list[Candidate]:
        tunings.append(tuning)
        assert (multiprocessors, kept) == (77, quantization)
        return all_of_them(tuning, multiprocessors, kept)

    def proved(wanted: list[Candidate], shapes: ServedShapes, plain: Ops) -> selfcheck.Proof:
        offered.append({candidate.name for candidate in wanted})
        return selfcheck.Proof(plain, [], 0.0)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=77))
    monkeypatch.setattr(candidates, "candidates", noting)
    monkeypatch.setattr(selfcheck, "prove_candidates", proved)
    shapes = replace(CPU, device=torch.device("cuda"), dtype=dtype, quantization=quantization)
    proof = prove(shapes, alone=alone)
    assert (proof.overlaps, proof.multiprocessors) == (overlaps, 77)
    assert (proof.ops.few_rows, proof.ops.many_rows) == rows
    assert tunings[0].overlaps == overlaps
    assert offered == [{c.name for c in all_of_them(Tuning(""), 77)} - left_out]
    prove(shapes, alone=alone, only={"sample", "few_rows_chain", "no such"})
    assert offered[1] == {"sample", "few_rows_chain"} - left_out


def test_a_gpu_without_triton_serves_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "service.engine.kernels.candidates", None)
    proof = prove(replace(CPU, device=torch.device("cuda")))
    assert proof.ops == Ops()
    assert proof.degraded[0].startswith("triton: ")


def test_a_layout_that_a_kernel_cannot_take_falls_to_torch(kernel_subject: Subject) -> None:
    """head_dim 24 is no power of two: the tiles have no such side."""
    odd = replace(CPU, config=replace(CONFIG, head_dim=24), device=kernel_subject.device)
    fields = {"rotate_and_cache": kernel_subject.ops.rotate_and_cache}
    proof = prove_candidates([Candidate("rope", fields, checks.check_rotate_and_cache)], odd, Ops())
    assert proof.ops.rotate_and_cache is torch_ops.rotate_and_cache
    assert len(proof.degraded) == 1


@pytest.mark.parametrize(
    ("result", "passes"), [(1.0, True), (1.0 + 1e-6, True), (1.001, False), (float("nan"), False), (0.0, False)]
)
def test_closeness_is_judged_row_by_row(result: float, passes: bool) -> None:
    reference = torch.ones(100, 8)
    candidate = reference.clone()
    candidate[42] = result
    if passes:
        require_close("it", candidate, reference, torch.float32)
    else:
        with pytest.raises(Disagreement, match="it is off by"):
            require_close("it", candidate, reference, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kernels_are_checked_with_the_types_they_serve(dtype: torch.dtype) -> None:
    """A kernel is compiled for the types it meets: the checked one would be another than the one that serves."""
    met: dict[str, set[torch.dtype]] = {}

    def noting(name: str, operation: Any) -> Any:
        def noted(*arguments: Any) -> Any:
            met[name] = {t.dtype for t in arguments if isinstance(t, torch.Tensor) and t.is_floating_point()}
            return operation(*arguments)

        return noted

    for name, check in (("rotate_and_cache", checks.check_rotate_and_cache), ("sample", sample_check.check_sample)):
        check(replace(Ops(), **{name: noting(name, getattr(Ops(), name))}), replace(CPU, dtype=dtype))
    assert met == {"rotate_and_cache": {dtype}, "sample": {dtype}}
