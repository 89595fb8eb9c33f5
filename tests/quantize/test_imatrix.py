"""Importance matrices: their two file forms, what is asked of them, and files that are none."""

import ctypes
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.errors import BadModelFile, LocalLLMError, ModelNotFound
from localllm.formats.blocks import BlockType, decode
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.gguf_write import write_gguf
from localllm.quantize.encode import encode
from localllm.quantize.imatrix import (
    Importance,
    ImportanceCollector,
    ImportanceMatrix,
    read_imatrix,
    write_imatrix,
)

Q, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_down_exps.weight"


def matrix() -> ImportanceMatrix:
    rng = np.random.default_rng(5)
    entries = {
        Q: Importance(rng.random((1, 64), np.float32) * 10, np.array([100], np.float32)),
        EXPERTS: Importance(rng.random((3, 32), np.float32), np.array([7, 0, 93], np.float32)),
    }
    return ImportanceMatrix(entries, ("some.txt",), 4, 256)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "a.gguf", matrix())
    found = read_imatrix(tmp_path / "a.gguf")
    assert (found.datasets, found.num_chunks, found.chunk_size) == (("some.txt",), 4, 256)
    for name, entry in matrix().entries.items():
        assert np.array_equal(found.entries[name].sums, entry.sums)
        assert np.array_equal(found.entries[name].counts, entry.counts)


def test_the_file_has_the_names_and_shapes_that_llama_cpp_gives(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "a.gguf", matrix())
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["some.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 4
    assert reader.fields["imatrix.chunk_size"].contents() == 256
    shapes = {tensor.name: (tensor.tensor_type.name, tensor.shape.tolist()) for tensor in reader.tensors}
    assert shapes[f"{EXPERTS}.in_sum2"] == ("F32", [32, 3]) and shapes[f"{EXPERTS}.counts"] == ("F32", [1, 3])
    assert shapes[f"{Q}.in_sum2"] == ("F32", [64, 1]) and shapes[f"{Q}.counts"] == ("F32", [1, 1])


def test_a_file_of_another_writer_is_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", arch="")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["one", "two"])
    writer.add_uint32("imatrix.chunk_count", 9)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor(f"{Q}.in_sum2", np.arange(64, dtype=np.float32).reshape(1, 64))
    writer.add_tensor(f"{Q}.counts", np.full((1, 1), 4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_imatrix(tmp_path / "b.gguf")
    means = found.importance_of(Q)
    assert found.datasets == ("one", "two") and means is not None
    assert np.array_equal(means[1:], np.arange(1, 64, dtype=np.float32) / 4)


def old_form(entries: Mapping[str, tuple[int, list[float]]], tail: bytes = b"") -> bytes:
    parts = [struct.pack("<i", len(entries))]
    for name, (calls, values) in entries.items():
        encoded = name.encode()
        parts += [struct.pack("<i", len(encoded)), encoded, struct.pack("<ii", calls, len(values))]
        parts.append(struct.pack(f"<{len(values)}f", *values))
    return b"".join(parts) + tail


def test_the_old_binary_form_is_read_with_and_without_its_tail(tmp_path: Path) -> None:
    path = tmp_path / "a.dat"
    path.write_bytes(old_form({Q: (2, [2, 4, 6, 8])}, struct.pack("<ii", 7, 3) + b"wik"))
    found = read_imatrix(path)
    assert (found.num_chunks, found.datasets) == (7, ("wik",))
    assert found.importance_of(Q) == pytest.approx([1, 2, 3, 4])
    path.write_bytes(old_form({Q: (2, [2, 4, 6, 8])}))
    assert read_imatrix(path).importance_of(Q) == pytest.approx([1, 2, 3, 4])


def test_experts_of_the_old_form_are_told_apart_by_the_columns_of_the_weight(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(old_form({EXPERTS: (1, [1, 2, 3, 4, 5, 6])}))
    found = read_imatrix(tmp_path / "a.dat").importance_of(EXPERTS, 2)
    assert found is not None and found.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_every_column_counts_for_something() -> None:
    sums = np.array([[0, 8, 4, 0]], np.float32)
    found = ImportanceMatrix({Q: Importance(sums, np.array([4], np.float32))}).importance_of(Q)
    assert found is not None and found[1:3].tolist() == [2, 1] and 0 < found[0] == found[3] < 1e-5


def test_an_expert_that_met_no_token_counts_its_columns_alike() -> None:
    found = matrix().importance_of(EXPERTS)
    assert found is not None and found.shape == (3, 32) and (found[1] == 1).all()


def test_what_was_never_met_is_none_and_another_model_is_refused() -> None:
    assert matrix().importance_of("output.weight") is None
    with pytest.raises(BadModelFile, match=r"has 64 columns for .*, the model has 128"):
        matrix().importance_of(Q, 128)


@pytest.mark.parametrize("name", ["blk.0.attn_k.weight", "blk.0.attn_qkv.weight"])
def test_weights_with_one_input_share_its_importance(name: str) -> None:
    assert np.array_equal(matrix().importance_of(name), matrix().importance_of(Q))  # type: ignore[arg-type]
    assert matrix().importance_of(name.replace("blk.0", "blk.1")) is None


def test_a_collector_adds_up_squares() -> None:
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((50, 8)).astype(np.float32)
    collector = ImportanceCollector()
    for part in (inputs[:20], inputs[20:]):
        collector.add(Q, part)
        collector.add(EXPERTS, part, 2, 3)
    entries = collector.entries()
    assert entries[Q].sums[0] == pytest.approx(np.square(inputs.astype(np.float64)).sum(axis=0), rel=1e-6)
    assert entries[EXPERTS].counts.tolist() == [0, 0, 50] and not entries[EXPERTS].sums[:2].any()


def with_entry(sums: Any, counts: Any, **changes: Any) -> dict[str, Any]:
    tensors = []
    for name, values in ((f"{Q}.in_sum2", sums), (f"{Q}.counts", counts)):
        if values is not None:
            array = np.array(values, np.float32)
            tensors.append((name, array.shape, BlockType.F32, array.reshape(-1).view(np.uint8)))
    return {"metadata": {"general.type": "imatrix"} | changes, "tensors": tensors}


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (with_entry([[1, 2]], [[1]], **{"general.type": "model"}), "no importance matrix"),
        (with_entry([[1, 2]], None), "is missing"),
        (with_entry(None, [[1]]), "belong to no importance matrix"),
        (with_entry([[1, 2]], [[1], [1]]), "2 counts for 1 matrices"),
        (with_entry([[1, np.nan]], [[1]]), "not all numbers of at least 0"),
        (with_entry([[1, -2]], [[1]]), "not all numbers of at least 0"),
        (with_entry([[1, 2]], [[np.inf]]), "not all numbers of at least 0"),
        (with_entry([[1, 2]], [[1]], **{"imatrix.chunk_count": "many"}), "no numbers of things"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_gguf_files_that_are_none_are_refused(tmp_path: Path, file: dict[str, Any], words: str) -> None:
    write_gguf(tmp_path / "bad.gguf", **file)
    with pytest.raises(BadModelFile, match=words):
        read_imatrix(tmp_path / "bad.gguf")


def test_a_file_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        read_imatrix(tmp_path / "none.gguf")


@given(data=st.binary(max_size=200), cut=st.integers(0, 60))
def test_no_bytes_make_the_reader_fail_in_another_way(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.dat"
    good = old_form({Q: (2, [2, 4, 6, 8])}, struct.pack("<ii", 7, 3) + b"wik")
    for content in (data, good[:cut], good[:cut] + data, good + data):
        path.write_bytes(content)
        try:
            found = read_imatrix(path)
        except LocalLLMError:
            continue
        assert all(np.isfinite(entry.sums).all() for entry in found.entries.values())


def test_llama_cpp_quantizes_by_what_we_write(tmp_path: Path) -> None:
    """Its quantizer, given the means of our file, writes other blocks than without, and loses less where it counts."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="the oracle is llama-cpp-python")
    rng = np.random.default_rng(3)
    source = small_llama(tmp_path / "source.gguf", rng)
    name = "blk.0.ffn_down.weight"
    with GGUFFile.open(source) as file:
        values = decode(file.tensors[name].type, file.raw(name), file.tensors[name].shape)
    sums = np.exp(3 * rng.standard_normal((1, values.shape[1]))).astype(np.float32)
    write_imatrix(tmp_path / "i.gguf", ImportanceMatrix({name: Importance(sums, np.array([1], np.float32))}))
    means = read_imatrix(tmp_path / "i.gguf").importance_of(name)
    assert means is not None
    losses = []
    for given_means in (None, means):
        blocks = _quantized_by_llama_cpp(llama_cpp, source, tmp_path / "out.gguf", name, given_means)
        losses.append(float((np.square(decode(BlockType.Q4_K, blocks, values.shape) - values) * means).sum()))
    ours = decode(BlockType.Q4_K, encode(BlockType.Q4_K, values, means).reshape(-1), values.shape)
    assert losses[1] < 0.8 * losses[0]
    assert float((np.square(ours - values) * means).sum()) < 1.05 * losses[1]


def small_llama(path: Path, rng: np.random.Generator) -> Path:
    size = 256
    metadata: dict[str, Any] = {"general.architecture": "llama", "llama.attention.layer_norm_rms_epsilon": 1e-5}
    counts = {"block_count": 1, "context_length": 64, "embedding_length": size, "feed_forward_length": size}
    counts |= {"attention.head_count": 4, "attention.head_count_kv": 4, "rope.dimension_count": 64, "vocab_size": 32}
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {f"blk.0.{part}.weight": (size, size) for part in parts} | {"token_embd.weight": (32, size)}
    norms = ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight")
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {name: np.ones(size, np.float32) for name in norms}
    tensors = [(name, array.shape, BlockType.F32, array.reshape(-1).view(np.uint8)) for name, array in arrays.items()]
    write_gguf(path, metadata | {f"llama.{key}": count for key, count in counts.items()}, tensors)
    return path


def _quantized_by_llama_cpp(llama_cpp: Any, source: Path, target: Path, name: str, means: Any) -> Any:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S
    params.pure = True
    if means is not None:
        entries = (llama_cpp.llama_model_imatrix_data * 2)()
        entries[0].name = name.encode()
        entries[0].data = means.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entries[0].size = means.size
        params.imatrix = entries
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0
    with GGUFFile.open(target) as file:
        assert file.tensors[name].type is BlockType.Q4_K
        return file.raw(name).copy()
