"""What serves when a fast path is missing or lies, with a stand-in for the flash kernel and torch for the others."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from service.engine.attention import ChunkSpan, PagedCache, PrefillAttention
from service.engine.cuda import choose_paths as subject
from service.engine.cuda.choose_paths import assemble, choose_paths, proved_together
from service.engine.cuda.flash import FLASH_PAGE, FlashPrefillAttention, Varlen
from service.engine.cuda.paths import Paths, PrefillBySize
from service.engine.kernels import selfcheck, torch_ops
from service.engine.kernels.batch import DecodeInputs
from service.engine.kernels.candidate import Candidate, Disagreement, ServedShapes
from service.engine.kernels.ops import Ops, Product
from service.engine.kernels.prefill_check import check_prefill
from service.engine.kernels.selfcheck import Proof
from service.engine.kernels.trials import Trials
from service.engine.model import Model
from service.engine.runner import TorchRunner
from service.engine.steps.slots import Slots
from service.errors import EngineFailed
from tests.engine.kernels.test_selfcheck import CONFIG
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.plans import BLOCK_SIZE, decode, load_native, prefill, runner_of, sequence_of
from tests.support.rotating import rotate_and_attend
from tests.support.varlen import plain_varlen

SHAPES = ServedShapes(replace(CONFIG, max_positions=2000), 16, torch.float32, torch.device("cpu"))


def our_attention(*args: Any) -> torch.Tensor:
    return torch_ops.decode_attention(*args)


PROVED = Proof(replace(Ops(), decode_attention=our_attention), [], 0.0)
WITHOUT_DECODE = Proof(Ops(), ["decode_attention: does not compile"], 0.0)


def ignores_the_mask(*args: Any, **options: Any) -> torch.Tensor:
    return plain_varlen(*args, **(options | {"window_size": (-1, -1)}))


def aligns_with_the_start(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    *args: Any,
    **options: Any,
) -> torch.Tensor:
    """Every sequence's keys cut to as many as it has queries."""
    lengths = (cu_q[1:] - cu_q[:-1]).tolist()
    starts = cu_k.tolist()
    rows = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, lengths, strict=False)])
    return plain_varlen(q, k[rows], v[rows], cu_q, cu_q, *args, **options)


def is_not_there(*args: Any, **options: Any) -> torch.Tensor:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


def test_a_cpu_has_one_path_and_calls_that_no_degradation() -> None:
    choice = choose_paths(SHAPES, 8)
    assert (choice.paths, choice.block_size, choice.degraded) == (Paths(), 16, [])


def test_everything_that_proved_right_serves() -> None:
    choice = assemble(PROVED, SHAPES, 5, [plain_varlen])
    assert choice.degraded == []
    assert choice.block_size == 16
    assert choice.paths.plans_decode
    assert choice.paths.buckets == (1, 2, 4, 5)
    assert choice.paths.ops.decode_attention is our_attention
    assert choice.paths.prefill is not PrefillAttention


def test_an_attention_that_rotates_serves_beside_our_own_alone() -> None:
    """Any other divides its batches otherwise."""
    rotating = replace(PROVED, ops=replace(PROVED.ops, rotating_attention=rotate_and_attend))
    assert assemble(rotating, SHAPES, 5, [plain_varlen]).paths.rotates
    alone = replace(WITHOUT_DECODE, ops=replace(Ops(), rotating_attention=rotate_and_attend))
    for flash in (plain_varlen, is_not_there):
        paths = assemble(alone, SHAPES, 5, [flash]).paths
        assert paths.ops.rotating_attention is None
        assert not paths.rotates


def test_chunks_too_small_for_the_flash_kernel_have_their_own() -> None:
    def narrow(cache: PagedCache, places: torch.Tensor, spans: list[ChunkSpan]) -> Any:
        return "narrow"

    proof = replace(PROVED, ops=replace(PROVED.ops, chunk_attention=narrow), multiprocessors=7)
    prefill = assemble(proof, SHAPES, 5, [plain_varlen]).paths.prefill
    assert isinstance(prefill, PrefillBySize)
    assert (prefill.narrow, prefill.heads, prefill.multiprocessors) == (narrow, SHAPES.config.num_heads, 7)
    assert prefill.wide is not PrefillAttention
    without_flash = assemble(proof, SHAPES, 5, [is_not_there]).paths.prefill
    assert isinstance(without_flash, PrefillBySize)
    assert without_flash.wide is PrefillAttention


@pytest.mark.parametrize("varlen", [ignores_the_mask, aligns_with_the_start, is_not_there])
def test_a_flash_kernel_that_lies_or_is_missing_leaves_prefill_to_plain_attention(varlen: Varlen) -> None:
    choice = assemble(PROVED, SHAPES, 5, [varlen])
    assert choice.paths.prefill is PrefillAttention
    assert [reason.split(":")[0] for reason in choice.degraded] == ["flash_prefill"]
    assert choice.paths.plans_decode, "decode is not concerned"


def test_a_way_to_the_flash_kernel_that_is_wrong_is_no_loss_where_another_is_right() -> None:
    choice = assemble(WITHOUT_DECODE, SHAPES, 5, [is_not_there, plain_varlen])
    assert choice.degraded == WITHOUT_DECODE.degraded
    assert choice.paths.plans_decode
    assert choice.paths.prefill is not PrefillAttention


def test_what_all_ways_fail_at_is_named_once() -> None:
    choice = assemble(WITHOUT_DECODE, SHAPES, 5, [is_not_there, aligns_with_the_start])
    why = "RuntimeError: FlashAttention only supports Ampere GPUs or newer."
    assert choice.degraded == [*WITHOUT_DECODE.degraded, f"flash_decode: {why}", f"flash_prefill: {why}"]


def test_a_way_that_ended_the_process_leaves_the_other_to_serve(tmp_path: Path) -> None:
    def ends_the_process(*args: Any, **options: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    shapes = replace(SHAPES, trials=Trials(tmp_path / "trial"))
    (tmp_path / "trial").write_text("flash_prefill.0")
    choice = assemble(PROVED, shapes, 5, [ends_the_process, plain_varlen])
    assert choice.degraded == []
    assert choice.paths.prefill is not PrefillAttention


def test_without_our_decode_kernel_the_flash_kernel_takes_over_with_larger_blocks() -> None:
    choice = assemble(WITHOUT_DECODE, SHAPES, 5, [plain_varlen])
    assert choice.degraded == WITHOUT_DECODE.degraded
    assert choice.block_size == FLASH_PAGE
    assert choice.paths.plans_decode
    assert choice.paths.ops.decode_attention is not torch_ops.decode_attention


@pytest.mark.parametrize("is_right", [True, False])
def test_chunks_are_proved_for_the_larger_blocks_too(is_right: bool) -> None:
    """Compiled for others, the kernel would first be compiled for these beside running streams."""
    seen: list[int] = []

    def chunks(cache: PagedCache, places: torch.Tensor, spans: list[ChunkSpan]) -> Any:
        seen.append(cache.block_size)
        if cache.block_size == FLASH_PAGE and not is_right:
            raise ValueError("no such block")
        return PrefillAttention(cache, places, spans)

    proof = replace(WITHOUT_DECODE, ops=replace(Ops(), chunk_attention=chunks))
    choice = assemble(proof, SHAPES, 5, [plain_varlen])
    assert set(seen) == {FLASH_PAGE}
    assert isinstance(choice.paths.prefill, PrefillBySize) is is_right
    assert (choice.paths.ops.chunk_attention is chunks) is is_right
    added = choice.degraded[len(WITHOUT_DECODE.degraded) :]
    assert added == ([] if is_right else ["chunk_attention: ValueError: no such block"])


@pytest.mark.parametrize("is_right", [True, False])
def test_so_is_where_a_decode_finds_its_inputs(is_right: bool) -> None:
    def locate(slots: Slots, numbers: torch.Tensor, block_size: int) -> DecodeInputs:
        found = torch_ops.locate(slots, numbers, block_size)
        return found if is_right else replace(found, places=found.places + 1)

    proof = replace(WITHOUT_DECODE, ops=replace(Ops(), locate=locate))
    choice = assemble(proof, SHAPES, 5, [plain_varlen])
    assert (choice.paths.ops.locate is locate) is is_right
    assert [reason.split(":")[0] for reason in choice.degraded[1:]] == ([] if is_right else ["locate"])


def test_without_either_decode_kernel_nothing_is_planned_or_recorded() -> None:
    choice = assemble(WITHOUT_DECODE, SHAPES, 5, [is_not_there])
    assert [reason.split(":")[0] for reason in choice.degraded] == ["decode_attention", "flash_decode", "flash_prefill"]
    assert (choice.block_size, choice.paths.plans_decode, choice.paths.buckets) == (16, False, ())


@pytest.mark.parametrize("proof", [PROVED, WITHOUT_DECODE], ids=["prefill", "prefill and decode"])
def test_the_second_way_to_the_flash_kernel_serves_when_the_first_is_gone(proof: Proof) -> None:
    """The operator beneath the public function is private: another torch may have renamed it."""
    choice = assemble(proof, SHAPES, 5, [is_not_there, plain_varlen])
    assert choice.degraded == proof.degraded
    assert choice.paths.plans_decode
    assert choice.paths.prefill is not PrefillAttention


OVERLAPPING = Proof(replace(Ops(), silu_mul=lambda x: torch_ops.silu_mul(x)), [], 0.0, overlaps=True)


def proves(proof: Proof, alone: Proof = PROVED, asked: list[Any] | None = None) -> Any:
    """What proves the first kernels, or others when they are to run alone; and what it was `asked` to try."""

    def prove(_: ServedShapes, **options: Any) -> Proof:
        if asked is not None:
            asked.append(options)
        return alone if options.get("alone") else proof

    return prove


def judge(verdict: str, seen: list[Ops]) -> Candidate:
    def check(ops: Ops, shapes: ServedShapes) -> None:
        seen.append(ops)
        if verdict:
            raise Disagreement(verdict)

    return Candidate("overlap", {}, check)


def test_kernels_that_overlap_serve_when_they_were_proved_to() -> None:
    seen: list[Ops] = []
    assert proved_together(SHAPES, proves(OVERLAPPING), judge("", seen)) == OVERLAPPING
    assert seen == [OVERLAPPING.ops], "what is judged is what serves"


def test_kernels_that_do_not_overlap_need_no_such_proof() -> None:
    seen: list[Ops] = []
    assert proved_together(SHAPES, proves(WITHOUT_DECODE), judge("never asked", seen)) == WITHOUT_DECODE
    assert seen == []


def race_by(monkeypatch: pytest.MonkeyPatch, race: Callable[[Ops], Ops]) -> None:
    """A card whose kernels overlap; `race` stands in for the one against torch."""
    monkeypatch.setattr(subject, "prove", lambda _, alone, only: PROVED if alone else OVERLAPPING)
    monkeypatch.setattr(subject, "race", lambda ops, shapes: race(ops))


def outrun(ops: Ops) -> Ops:
    return replace(ops, outrun=frozenset({Product(1, 8, 8, False)}))


def test_what_was_raced_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    race_by(monkeypatch, outrun)
    proof = subject._proved_and_raced(SHAPES)
    assert (proof.ops, proof.degraded, proof.overlaps) == (outrun(OVERLAPPING.ops), [], True)


def test_a_race_without_room_is_no_reason_not_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    def race(ops: Ops) -> Ops:
        raise RuntimeError("CUDA out of memory")

    race_by(monkeypatch, race)
    assert subject._proved_and_raced(SHAPES) == OVERLAPPING


def test_launches_that_cannot_be_recorded_together_are_raced_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The race is the first to record them: a card that refuses serves kernels that run alone."""

    def race(ops: Ops) -> Ops:
        if ops == OVERLAPPING.ops:
            raise RuntimeError("Triton Error [CUDA]: invalid resource handle")
        return outrun(ops)

    race_by(monkeypatch, race)
    proof = proved_together(SHAPES, subject._proved_and_raced, judge("never asked", []))
    assert proof.ops == outrun(PROVED.ops)
    assert proof.degraded == ["overlap: race: RuntimeError: Triton Error [CUDA]: invalid resource handle"]


def test_a_race_that_cannot_be_run_at_all_leaves_the_kernels_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def race(ops: Ops) -> Ops:
        raise ValueError("no such thing")

    race_by(monkeypatch, race)
    proof = proved_together(SHAPES, subject._proved_and_raced, judge("never asked", []))
    assert proof.ops == PROVED.ops
    assert proof.degraded == ["overlap: race: ValueError: no such thing", "race: ValueError: no such thing"]


def test_a_race_that_ends_the_process_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def race(ops: Ops) -> Ops:
        raise RuntimeError("CUDA error: an illegal memory access")

    def unusable(device: torch.device, name: str) -> None:
        raise EngineFailed(f"the kernel {name} left {device} unusable")

    race_by(monkeypatch, race)
    shapes = replace(SHAPES, trials=Trials(tmp_path / "trial"))
    with monkeypatch.context() as poisoned:
        poisoned.setattr(selfcheck, "require_usable", unusable)
        with pytest.raises(EngineFailed):
            subject._proved_and_raced(shapes)
    proof = proved_together(shapes, subject._proved_and_raced, judge("never asked", []))
    assert proof.ops == PROVED.ops
    assert [reason.split(":")[0] for reason in proof.degraded] == ["overlap", "race"]


def test_when_overlapping_kernels_disagree_others_run_alone_and_the_reason_is_named() -> None:
    proof = proved_together(SHAPES, proves(OVERLAPPING), judge("decodes of 3 rows differ", []))
    assert proof.ops == PROVED.ops
    assert proof.degraded == ["overlap: decodes of 3 rows differ"]


def test_a_kernel_that_fails_may_do_so_for_its_launch_and_is_tried_alone() -> None:
    seen: list[Ops] = []
    broken = replace(OVERLAPPING, degraded=["silu_mul: RuntimeError: invalid launch attribute"])
    alone = replace(PROVED, degraded=["sample: off"])
    proof = proved_together(SHAPES, proves(broken, alone), judge("", seen))
    assert proof.degraded == ["overlap: silu_mul: RuntimeError: invalid launch attribute", "sample: off"]
    assert (proof.ops, seen) == (PROVED.ops, [])


@pytest.mark.parametrize("disagreement", ["", "decodes of 3 rows differ"])
def test_a_kernel_that_fails_alone_too_does_not_keep_the_others_from_overlapping(disagreement: str) -> None:
    seen: list[Ops] = []
    reasons = [f"many_rows_linear: {why}" for why in ("out of resources", "out of resources, too")]
    broken, alone = (replace(p, degraded=[why]) for p, why in zip((OVERLAPPING, PROVED), reasons, strict=True))
    asked: list[Any] = []
    proof = proved_together(SHAPES, proves(broken, alone, asked), judge(disagreement, seen))
    assert seen == [OVERLAPPING.ops], "they are tried together first"
    again = {"alone": True, "only": {"many_rows_linear"}}
    if disagreement:
        assert (proof.ops, proof.degraded) == (PROVED.ops, [f"overlap: {disagreement}", reasons[1]])
        assert asked == [{}, again, {"alone": True}]
    else:
        assert proof == broken
        assert asked == [{}, again], "the others are not compiled anew"


def test_the_check_itself_holds_plain_attention_right() -> None:
    check_prefill("plain", PrefillAttention, SHAPES)


@pytest.mark.parametrize("scores_at_once", [1, 50, 333, 10_000])
def test_plain_attention_in_pieces_is_right_too(scores_at_once: int) -> None:
    check_prefill("plain", partial(PrefillAttention, scores_at_once=scores_at_once), SHAPES)


@pytest.mark.parametrize("scores_at_once", [100, 1000])
def test_plain_attention_keeps_the_scores_of_a_piece_within_bounds(
    scores_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no flash kernel, a whole chunk's would not fit a GPU beside the weights."""
    sizes: list[int] = []

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        sizes.append(q.shape[2] * k.shape[2])
        return q

    monkeypatch.setattr("service.engine.attention.scaled_dot_product_attention", watched)
    config = replace(SHAPES.config, num_layers=1, num_heads=4, num_kv_heads=4, head_dim=16)
    cache = PagedCache(config, 10, SHAPES.block_size, SHAPES.device, SHAPES.dtype)
    spans = [ChunkSpan(0, 40, 100, torch.arange(1, 8, dtype=torch.int32)), ChunkSpan(40, 43, 3, torch.tensor([9]))]
    rows = torch.zeros(43, 4, 16)
    PrefillAttention(cache, torch.zeros(43, dtype=torch.int64), spans, scores_at_once)(0, rows, rows, rows)
    assert max(sizes) <= scores_at_once
    assert len(sizes) == (41 if scores_at_once == 100 else 5)


def test_pieces_of_a_chunk_are_its_rows_each_up_to_its_own_end() -> None:
    span = ChunkSpan(5, 15, 42, torch.tensor([7, 3, 9]))
    pieces = list(span.pieces(4, 16))
    assert [(p.first, p.last, p.start, p.end) for p in pieces] == [(5, 9, 32, 36), (9, 13, 36, 40), (13, 15, 40, 42)]
    assert [p.blocks.tolist() for p in pieces] == [[7, 3, 9]] * 3
    early = ChunkSpan(0, 33, 33, torch.tensor([7, 3, 9])).pieces(16, 16)
    assert [p.blocks.tolist() for p in early] == [[7], [7, 3], [7, 3, 9]]


def test_the_check_sees_a_factory_that_forgets_a_sequence() -> None:
    def forgetful(cache: Any, places: torch.Tensor, spans: Any) -> FlashPrefillAttention:
        return FlashPrefillAttention(cache, places, spans[:-1], plain_varlen)

    with pytest.raises(Disagreement, match="of shape"):
        check_prefill("forgetful", forgetful, SHAPES)


# --- the same paths under a real model ---

PROMPTS = [[7, 8, 9], list(range(20, 20 + 2 * BLOCK_SIZE)), [(i * 37) % 320 for i in range(60)]]
COUNT = 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.set_num_threads(1)
    return load_native(write_checkpoint(tmp_path_factory.mktemp("model"), Shape(heads=16, kv_heads=2)))


def answers(runner: TorchRunner, chunk: int) -> list[list[int]]:
    served = []
    for slot, prompt in enumerate(PROMPTS):
        blocks = range(1 + 10 * slot, 1 + 10 * slot - (-(len(prompt) + COUNT) // runner.block_size))
        served.append(sequence_of(prompt, slot=slot, blocks=list(blocks), new=COUNT))
    first = [prefill(runner, sequence, chunk) for sequence in served]
    rest = decode(runner, served, COUNT - 1)
    return [[token, *tokens] for token, tokens in zip(first, rest, strict=True)]


@pytest.mark.parametrize("chunk", [3, 16, 512])
def test_flash_prefill_gives_the_plain_paths_tokens(model: Model, chunk: int) -> None:
    paths = assemble(PROVED, SHAPES, 8, [plain_varlen]).paths
    assert answers(runner_of(model, paths=paths), chunk) == answers(runner_of(model), chunk)


def test_flash_decode_gives_the_plain_paths_tokens(model: Model) -> None:
    choice = assemble(WITHOUT_DECODE, SHAPES, 8, [plain_varlen])
    assert choice.paths.plans_decode
    paged = Model.__new__(Model)
    paged.__dict__.update(model.__dict__)
    paged.ops = choice.paths.ops
    runner = runner_of(paged, paths=choice.paths, block_size=choice.block_size)
    assert answers(runner, 512) == answers(runner_of(model), 512)
