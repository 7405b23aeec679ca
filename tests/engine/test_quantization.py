"""Eight-bit matrices: rounded to the nearest, read into their places, and answering as the numbers they stand for."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from service.engine import quantization
from service.engine.base import EngineConfig, SamplingParams
from service.engine.checkpoint.staging import Lane
from service.engine.checkpoint.tensor_file import read_extents
from service.engine.checkpoint.tensors import Checkpoint
from service.engine.config import read_config
from service.engine.quantization import Int8Matrix, linear
from service.engine.startup.build import build_core
from service.engine.weights import allocate, load_weights, open_checked, places_of
from tests.support.checkpoints import Shape, tensors_of, write_checkpoint
from tests.support.driving import drain, tokens_of
from tests.support.engines import a_request
from tests.support.plans import load_native, logits_of

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0)
SHAPES = [Shape(heads=16, kv_heads=1, shards=2), Shape(tied=True), Shape(qkv_bias=True, bias=True, heads=4, kv_heads=4)]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def numbers(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows of very different sizes."""
    torch.manual_seed(rows)
    return (torch.randn(rows, columns) * torch.logspace(-4, 2, rows)[:, None]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_number_is_within_half_a_step_of_its_row(dtype: torch.dtype) -> None:
    wide = numbers(40, 300, dtype)
    matrix = Int8Matrix.of(wide)
    step = wide.float().abs().amax(1) / 127
    assert torch.allclose(matrix.scales, step, rtol=1e-6)
    distance = (matrix.dequantized(torch.float32) - wide.float()).abs()
    assert (distance <= 0.501 * step[:, None]).all()
    assert matrix.values.abs().amax(1).eq(127).all(), "all levels are used"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_number_is_widened_exactly_and_rounded_once(dtype: torch.dtype) -> None:
    matrix = Int8Matrix.of(numbers(40, 300))
    assert torch.equal(matrix.dequantized(dtype), (matrix.values.float() * matrix.scales[:, None]).to(dtype))


def test_a_row_of_zeros_stays_zeros() -> None:
    matrix = Int8Matrix.of(torch.zeros(3, 8))
    assert matrix.scales.gt(0).all(), "nothing was divided by zero"
    assert matrix.values.eq(0).all()
    assert torch.equal(matrix.dequantized(torch.float16), torch.zeros(3, 8, dtype=torch.float16))


def test_it_takes_half_the_memory_of_sixteen_bits() -> None:
    matrix = Int8Matrix.of(numbers(64, 4096))
    assert matrix.values.nbytes + matrix.scales.nbytes < 0.502 * 64 * 4096 * 2


@pytest.mark.parametrize("at_once", [300, 1000, 7000, 41 * 300])
def test_a_large_matrix_is_rounded_and_widened_in_parts(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    wide, x, bias = numbers(41, 300), torch.randn(5, 300), torch.randn(41)
    whole = Int8Matrix.of(wide)
    expected = torch.nn.functional.linear(x, whole.dequantized(torch.float32), bias)
    largest: list[int] = []
    rounded: list[int] = []
    dequantized, rounding = Int8Matrix.dequantized, Int8Matrix._round

    def noting(self: Int8Matrix, dtype: torch.dtype) -> torch.Tensor:
        largest.append(self.shape.numel())
        return dequantized(self, dtype)

    def noting_round(self: Int8Matrix, wide: torch.Tensor) -> None:
        rounded.append(wide.numel())
        rounding(self, wide)

    monkeypatch.setattr(Int8Matrix, "_round", noting_round)
    monkeypatch.setattr(quantization, "NUMBERS_AT_ONCE", at_once)
    monkeypatch.setattr(Int8Matrix, "dequantized", noting)
    in_parts = Int8Matrix.of(wide)
    assert torch.equal(in_parts.values, whole.values)
    assert torch.equal(in_parts.scales, whole.scales)
    # In parts the library adds up in another order; a part that is missing or wrong is off by units.
    torch.testing.assert_close(linear(x, in_parts, bias), expected, rtol=1e-5, atol=1e-3)
    assert max(*largest, *rounded) <= at_once
    assert len(largest) == -(-41 // (at_once // 300))


def test_a_view_of_some_rows_fills_them_and_nothing_else() -> None:
    fused, first, last = Int8Matrix.of(torch.ones(6, 4)), torch.full((2, 4), 3.0), torch.full((1, 4), -8.0)
    parts = fused.split([2, 3, 1])
    parts[0].copy_(first)
    parts[2].copy_(last)
    assert fused.dequantized(torch.float32)[:, 0].tolist() == pytest.approx([3, 3, 1, 1, 1, -8])


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("staged", [True, False])
def test_every_matrix_of_a_checkpoint_is_rounded_and_all_else_is_as_it_was(
    tmp_path: Path, shape: Shape, staged: bool
) -> None:
    config = read_config(write_checkpoint(tmp_path, shape))
    places = places_of(allocate(config, CPU, torch.float32, "int8"), config)
    Checkpoint(tmp_path, lambda name: False).read_into(places, staged=staged)
    for name, tensor in tensors_of(shape).items():
        place, is_matrix = places[name], tensor.dim() == 2 and "embed" not in name
        assert isinstance(place, Int8Matrix) == is_matrix, name
        if isinstance(place, Int8Matrix):
            assert torch.equal(place.dequantized(torch.float32), Int8Matrix.of(tensor).dequantized(torch.float32)), name
        else:
            assert torch.equal(place, tensor.float()), name


def test_a_tied_head_is_rounded_and_the_embedding_beside_it_is_not(tmp_path: Path) -> None:
    shape = Shape(tied=True)
    config = read_config(write_checkpoint(tmp_path, shape))
    weights, _ = load_weights(open_checked(tmp_path, config), config, CPU, torch.float32, "int8")
    embedding = tensors_of(shape)["model.embed_tokens.weight"]
    assert torch.equal(weights.embedding, embedding)
    assert isinstance(weights.head, Int8Matrix)
    assert torch.equal(weights.head.values, Int8Matrix.of(embedding).values)


@pytest.mark.parametrize("buffer_bytes", [28, 60, 90, 4096])
def test_a_matrix_arrives_in_pieces_of_whole_rows(tmp_path: Path, buffer_bytes: int) -> None:
    wide, path = numbers(9, 7), tmp_path / "file.safetensors"
    save_file({"matrix": wide}, path)
    place = Int8Matrix.of(torch.zeros(9, 7))
    with path.open("rb") as file:
        assert Lane(CPU, buffer_bytes).read(file.fileno(), path, read_extents(path)["matrix"], place) == wide.nbytes
    assert torch.equal(place.values, Int8Matrix.of(wide).values)
    assert torch.equal(place.scales, Int8Matrix.of(wide).scales)


def test_a_row_longer_than_a_buffer_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"matrix": numbers(2, 7)}, path)
    place = Int8Matrix.of(torch.zeros(2, 7))
    with path.open("rb") as file, pytest.raises(OSError, match="a row of 28 bytes is longer than a buffer of 27"):
        Lane(CPU, 27).read(file.fileno(), path, read_extents(path)["matrix"], place)


def rounded_checkpoint(directory: Path, shape: Shape) -> Path:
    """The very numbers that `shape`'s quantized matrices stand for, as a checkpoint that is not quantized."""
    tensors = tensors_of(shape)
    if shape.tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and "embed" not in name:
            tensors[name] = Int8Matrix.of(tensor).dequantized(torch.float32)
    return write_checkpoint(directory, Shape(**{**vars(shape), "tied": False}), tensors=tensors)


def greedy(model_dir: Path, **settings: str) -> dict[str, list[int]]:
    fields = {"kind": "native", "model_dir": str(model_dir), "device": "cpu", "threads": 1} | settings
    engine = build_core(EngineConfig(**fields), lambda message: None)  # type: ignore[arg-type]
    assert engine.info.quantization == settings.get("quantization", "none")
    prompts = ([7, 8, 9], [3] * 40, list(range(100, 170)), [5])
    return tokens_of(drain(engine, [a_request(prompt, new=24, sampling=GREEDY) for prompt in prompts]))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_greedy_tokens_are_those_of_transformers_on_the_rounded_numbers(tmp_path: Path, shape: Shape) -> None:
    write_checkpoint(tmp_path / "given", shape)
    rounded_checkpoint(tmp_path / "rounded", shape)
    served = greedy(tmp_path / "given", quantization="int8")
    assert list(served.values()) == list(greedy(tmp_path / "rounded", kind="reference").values())


TEXT = (
    "The Moon is Earth's only natural satellite. It orbits at an average distance of about 384,000 kilometres, and the "
    "same side always faces the Earth, because its rotation is locked to its orbit. Its gravity causes the tides of "
    "the oceans. In July 1969 Neil Armstrong and Buzz Aldrin became the first people to walk on its surface, while "
    "Michael Collins stayed in orbit above them. They collected rocks, planted a flag and returned four days later."
)


def loss(model_dir: Path, kept: quantization.Quantization) -> float:
    """Nats a token of TEXT."""
    ids = Tokenizer.from_file(str(model_dir / "tokenizer.json")).encode(TEXT).ids
    logits = logits_of(load_native(model_dir, torch.float32, kept), ids, torch.float32)
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item()


@pytest.mark.slow
def test_a_real_model_loses_next_to_nothing(smollm2_dir: Path) -> None:
    """The smaller a model, the more rounding costs it; this one is sixty times smaller than the one it is for."""
    whole, rounded = loss(smollm2_dir, "none"), loss(smollm2_dir, "int8")
    assert whole < 3, "it knows the language"
    assert rounded != whole, "something was rounded"
    assert rounded - whole < 0.01, "one per cent of perplexity"
