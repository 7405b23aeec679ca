"""The sampler against torch: the very tokens, and the slots as torch leaves them."""

from collections.abc import Sequence
from itertools import cycle, islice

import torch
from msgspec.structs import replace

from service.engine import sampling
from service.engine.base import SamplingParams
from service.engine.kernels import torch_ops
from service.engine.kernels.candidate import Disagreement, ServedShapes
from service.engine.kernels.ops import Ops
from service.engine.steps.slots import Slots

SAMPLED = (
    SamplingParams(temperature=0.0, repetition_penalty=2.0),
    SamplingParams(seed=1),
    SamplingParams(top_k=3, top_p=1.0, temperature=2.0, seed=2),
    SamplingParams(top_k=40, top_p=0.5, seed=3),
    SamplingParams(top_k=0, top_p=0.3, seed=4),
    SamplingParams(top_k=0, top_p=0.9, temperature=0.5, seed=5),
    SamplingParams(top_k=0, top_p=1.0, repetition_penalty=1.5, seed=6),
    SamplingParams(top_k=100, top_p=1.0, temperature=10.0, seed=7),
    SamplingParams(top_k=100, top_p=0.5, temperature=3.0, repetition_penalty=0.8, seed=8),
    SamplingParams(top_k=0, top_p=0.5, temperature=20.0, seed=-9),
    SamplingParams(top_k=0, top_p=1.0, min_p=0.1, presence_penalty=1.3, seed=10),
    SamplingParams(top_k=0, top_p=0.95, min_p=0.001, temperature=4.0, frequency_penalty=-0.3, seed=11),
)
"""Every method and both ways through the kernel that filters. Bounds bite: many likely tokens lie beyond each."""
BIASED = (
    SamplingParams(top_k=0, top_p=1.0, seed=12),
    SamplingParams(top_k=4, top_p=0.9, temperature=2.0, repetition_penalty=1.5, seed=13),
    SamplingParams(top_k=0, top_p=0.5, temperature=20.0, seed=14),
)
"""With some tokens' logits changed besides: the same ways."""
ADDED = (21.0, -100.0, 20.5, 0.25, 19.0, 22.0)
"""To tokens from one end of the vocabulary to the other. Several come to be the likeliest ones."""
DRAWS = 10
"""Rows for each of them, all of other logits: a wrong bound changes every third draw or so."""


def check_sample(ops: Ops, shapes: ServedShapes) -> None:
    """The very tokens that torch draws, of logits of the served type, about half of them with the best near zero, and
    with and without a grammar; slots in another order than rows, which advance as torch has them advance; and two rows
    of padding."""
    vocab, device = shapes.config.vocab_size, shapes.device
    each_way = (*SAMPLED, *(replace(params, logit_bias=_bias(vocab)) for params in BIASED))
    params = each_way * DRAWS
    count = len(params)
    logits = shapes.random(count + 2, vocab, spread=3.0)
    logits[count // 2 :] -= logits.max()
    marks = torch.cat([each.expand(len(each_way), -1) for each in islice(cycle(_marks(vocab, device)), DRAWS)])
    mine, torchs = (sampling_slots(params, marks, torch.arange(count) + 99) for _ in range(2))
    numbers = shapes.whole([*reversed(range(count)), mine.spare, mine.spare])
    methods = mine.methods(list(range(count)))
    drawn = ops.sample(logits, mine, numbers, methods)
    # A few rows at a time: torch sorts them, which takes ten times the memory of their logits.
    parts = zip(*(torch.split(whole, len(each_way)) for whole in (logits, numbers)), strict=True)
    expected = torch.cat([torch_ops.sample(part, torchs, rows, methods) for part, rows in parts])
    wrong = (drawn != expected)[:count].nonzero().flatten().tolist()
    if wrong:
        raise Disagreement(f"sample drew other tokens than torch in {len(wrong)} of {count} rows, first {wrong[0]}")
    states = ((s.tokens[:count], s.positions, s.parameters.marks[:count]) for s in (mine, torchs))
    if not all(torch.equal(one, other) for one, other in zip(*states, strict=True)):
        raise Disagreement("sample left the slots otherwise than torch")


def _bias(vocab: int) -> tuple[tuple[int, float], ...]:
    return tuple((place * (vocab - 1) // (len(ADDED) - 1), added) for place, added in enumerate(ADDED))


def _marks(vocab: int, device: torch.device) -> list[torch.Tensor]:
    """Marks [vocab]: of tokens that were seen, with none forbidden, all but some twenty, and every other one."""
    token = torch.arange(vocab, device=device)
    seen = (token % 3 == 0) * (sampling.SEEN + token % (sampling.MOST_COUNTED + 1) * sampling.ONCE)
    return [
        seen | forbidden * sampling.FORBIDDEN for forbidden in (token < 0, token % (vocab // 20 + 1) != 5, token % 2)
    ]


def sampling_slots(params: Sequence[SamplingParams], marks: torch.Tensor, positions: torch.Tensor) -> Slots:
    """A slot for each of `params`, with its tokens' `marks` [N, vocab] and the last one's place [N]."""
    slots = Slots(len(params), 1, marks.shape[1], marks.device)
    for number, each in enumerate(params):
        slots.set_parameters(number, each)
    slots.positions[: len(params)] = positions.to(marks.device)
    slots.parameters.marks[: len(params)] = marks
    return slots
