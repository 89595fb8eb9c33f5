"""Hostile and damaged GGUF files give one sentence, at once, and take no memory.

The named cases are those of llama.cpp's test-gguf and of Ollama's GGUF tests.
"""

import os
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.errors import BadModelFile, LocalLLMError, ModelNotFound, UnsupportedModel
from localllm.formats.blocks import BlockType
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.gguf_write import write_gguf
from tests.formats.crafted import (
    BOOL,
    F32,
    I8,
    I64,
    INT32,
    Q4_0,
    STRING,
    UINT8,
    array,
    gguf,
    key,
    number,
    tensor,
    text,
)

ONE = tensor("a", [8])  # 32 bytes of float32
MANY = 2**64 - 1

LLAMA_CPP_CASES = {
    "header_bad_magic": (gguf(magic=b"FUGG"), "magic"),
    "header_bad_version_0": (gguf(version=0), "version"),
    "header_bad_version_future": (gguf(version=4), "version"),
    "header_bad_n_tensors": (gguf(num_tensors=MANY), "tensor count"),
    "header_bad_n_kv": (gguf(num_keys=MANY), "metadata count"),
    "kv_bad_key_size": (gguf([key("k", UINT8, b"\1", length=MANY)]), "key 0"),
    "kv_empty_key": (gguf([key("", UINT8, b"\1")]), "key 0 is empty"),
    "kv_bad_type": (gguf([key("k", 13, b"\1")]), "type of k"),
    "kv_bad_type_negative": (gguf([key("k", 2**32 - 1, b"\1")]), "type of k"),
    "kv_bad_array_type": (gguf([array("k", 13, 1, b"\1")]), "type of k"),
    "kv_bad_value_size": (gguf([key("k", STRING, text(b"x", MANY))]), "length of k"),
    "kv_duplicate_key": (gguf([number("k", 1), number("k", 2)]), "twice"),
    "kv_bad_align": (gguf([number("general.alignment", 13)]), "general.alignment"),
    "kv_zero_align": (gguf([number("general.alignment", 0)]), "general.alignment"),
    "kv_wrong_type_align": (gguf([number("general.alignment", 32, INT32)]), "general.alignment"),
    "tensors_bad_name_size": (gguf(tensors=[tensor("n" * 64, [8])], data=bytes(32)), "name of tensor 0"),
    "tensors_bad_n_dims": (gguf(tensors=[tensor("a", [8], num_dims=5)], data=bytes(32)), "dimensions"),
    "tensors_bad_shape": (gguf(tensors=[tensor("a", [-1])], data=bytes(32)), "tensor a"),
    "tensors_zero_dim": (gguf(tensors=[tensor("a", [8, 0])], data=bytes(32)), "shape of a"),
    "tensors_ne_too_big": (gguf(tensors=[tensor("a", [4 * (2**31 - 1)] * 2)], data=bytes(32)), "tensor a"),
    "tensors_nbytes_too_big": (gguf(tensors=[tensor("a", [1_540_000_000] * 2, I64)], data=bytes(32)), "tensor a"),
    "tensors_bad_offset": (gguf(tensors=[tensor("a", [8], offset=MANY)], data=bytes(32)), "offset of a"),
    "tensors_duplicate_name": (gguf(tensors=[ONE, tensor("a", [8], offset=32)], data=bytes(64)), "twice"),
    "tensors_bad_align": (gguf([number("general.alignment", 13)], [ONE], bytes(32)), "general.alignment"),
    "tensors_inconsistent_align": (
        gguf(tensors=[tensor("a", [3]), tensor("b", [3], offset=12)], data=bytes(64)),
        "offset of b",
    ),
    "data_not_enough_data": (gguf(tensors=[ONE], data=bytes(31)), "tensor a"),
    "data_none": (gguf(tensors=[ONE]), "tensor a"),
    "data_bad_align": (gguf([number("general.alignment", 24)], [ONE], bytes(32)), "general.alignment"),
    "data_inconsistent_align": (gguf(tensors=[tensor("a", [8], offset=1)], data=bytes(64)), "offset of a"),
    "data_mem_size_overflow": (
        gguf(tensors=[tensor("a", [2**63 - 64], I8), tensor("b", [2**63 - 64], I8, 2**63 - 64)], data=bytes(32)),
        "tensor a",
    ),
    "data_pad_wrap": (gguf(tensors=[tensor("a", [8], offset=2**64 - 32)], data=bytes(32)), "tensor a"),
    "data_overlap": (gguf(tensors=[tensor("a", [16]), tensor("b", [8], offset=32)], data=bytes(64)), "offset of b"),
}
OLLAMA_CASES = {
    "oversized_length": (gguf([key("general.name", STRING, text(b"x", 2**40))]), "general.name"),
    "oversized_array": (gguf([array("k", UINT8, 2**40)]), "length of k"),
    "oversized_string_array": (gguf([array("k", STRING, 2**62)]), "length of k"),
    "row_not_multiple_of_block": (gguf(tensors=[tensor("a", [33], Q4_0)], data=bytes(64)), "Q4_0"),
    "array_longer_than_the_file": (gguf([array("k", UINT8, 1000)]), "more than the rest of the file"),
    "invalid_offset": (gguf(tensors=[tensor("a", [8], offset=4096)], data=bytes(32)), "tensor a"),
}
OUR_CASES = {
    "empty_magic_only": (b"GGUF", "version"),
    "key_not_utf8": (gguf([key(b"\xff\xfe", UINT8, b"\1")]), "UTF-8"),
    "name_empty": (gguf(tensors=[tensor("", [8])], data=bytes(32)), "empty"),
    "name_length_past_the_end": (gguf(tensors=[tensor("a", [8], length=60)]), "tensor 0"),
    "string_in_array_past_the_end": (gguf([array("k", STRING, 2, text("ok") + text("x", 2**63))]), "k has a string"),
    "arrays_nested_too_deeply": (gguf([array("k", 9, 1, struct.pack("<IQ", 9, 1) * 50 + bytes(12))]), "deep"),
    "split_count_an_array": (gguf([array("split.count", UINT8, 2, b"\1\1")]), "split.count is not an integer"),
    "split_no_a_string": (gguf([key("split.no", STRING, text("\x1b[2J"))]), "split.no is not an integer"),
    "nested_array_past_the_end": (gguf([array("k", 9, 1, struct.pack("<IQ", BOOL, 2**33))]), "length of k"),
}
ALL_CASES = LLAMA_CPP_CASES | OLLAMA_CASES | OUR_CASES


@pytest.mark.parametrize("case", ALL_CASES)
def test_a_hostile_file_is_refused_at_once_with_file_and_field(case: str, tmp_path: Path) -> None:
    content, field = ALL_CASES[case]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    begin = time.perf_counter()
    with pytest.raises(BadModelFile) as caught:
        GGUFFile.open(path)
    elapsed_s = time.perf_counter() - begin
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert elapsed_s < 1
    assert peak_bytes < 64 << 20
    assert str(path) in caught.value.message
    assert field in caught.value.message


@pytest.mark.parametrize("kind", [4, 31, 42, 2**32 - 1])
def test_an_unknown_block_type_is_named(kind: int, tmp_path: Path) -> None:
    (tmp_path / "f.gguf").write_bytes(gguf(tensors=[tensor("a", [8], kind)], data=bytes(32)))
    with pytest.raises(UnsupportedModel, match=f"'a' is number {kind}"):
        GGUFFile.open(tmp_path / "f.gguf")


@pytest.mark.parametrize(
    ("front", "says"), [(struct.pack(">IQQ", 3, 0, 0), "big-endian"), (struct.pack("<III", 1, 0, 0), "version 1")]
)
def test_big_endian_files_and_those_of_the_first_version_are_refused_by_name(
    front: bytes, says: str, tmp_path: Path
) -> None:
    (tmp_path / "f.gguf").write_bytes(b"GGUF" + front)
    with pytest.raises(UnsupportedModel, match=says):
        GGUFFile.open(tmp_path / "f.gguf")


@pytest.mark.parametrize(
    "content",
    [
        gguf(),
        gguf([number("k", 1)]),
        gguf([number("general.alignment", 1)], [tensor("a", [3]), tensor("b", [3], F32, 12)], bytes(24), alignment=1),
        gguf(tensors=[ONE], data=bytes(32)),
        gguf(tensors=[ONE], data=bytes(32), version=2),
        gguf(tensors=[tensor("a", [3])], data=bytes(12)),
    ],
    ids=["empty", "keys", "custom_align", "data", "version_2", "no_final_padding"],
)
def test_llama_cpps_sound_files_open(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f.gguf").write_bytes(content)
    with GGUFFile.open(tmp_path / "f.gguf") as file:
        assert len(file.tensors) == int.from_bytes(content[8:16], "little")


@pytest.mark.parametrize("count", [2**22 + 1, 2**30])
def test_counts_that_a_huge_file_could_hold_are_refused_all_the_same(count: int, tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    for item in (UINT8, STRING):
        path.write_bytes(gguf([array("k", item, count * (16 if item == UINT8 else 1))]))
        os.truncate(path, 1 << 36)  # sparse: takes no disk
        with pytest.raises(BadModelFile, match="allowed"):
            GGUFFile.open(path)


def test_strings_are_counted_over_all_arrays(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    empty_strings = bytes(8 * 2**21)
    path.write_bytes(gguf([array(f"k{index}", STRING, 2**21, empty_strings) for index in range(3)]))
    with pytest.raises(BadModelFile, match="length of k2 is 2097152, more than the 0 that are allowed"):
        GGUFFile.open(path)


def test_names_out_of_the_file_cannot_reach_the_terminal_as_escapes(tmp_path: Path) -> None:
    (tmp_path / "f.gguf").write_bytes(gguf([key("\x1b[2J" + "k" * 60000, 99, b"")]))
    with pytest.raises(BadModelFile) as caught:
        GGUFFile.open(tmp_path / "f.gguf")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000


def test_a_token_that_is_not_utf8_is_named_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "f.gguf").write_bytes(gguf([array("\nk", STRING, 2, text("ok") + text(b"\xff"))]))
    with GGUFFile.open(tmp_path / "f.gguf") as file, pytest.raises(BadModelFile, match=r"'\\nk\[1\]' is not valid"):
        file.metadata["\nk"]


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no file"):
        GGUFFile.open(tmp_path / "none.gguf")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path / "pipe.gguf", tmp_path, Path("/dev/zero")):
        with pytest.raises(BadModelFile, match="regular"):
            GGUFFile.open(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.gguf").touch()
    with pytest.raises(BadModelFile, match="empty"):
        GGUFFile.open(tmp_path / "f.gguf")


@pytest.fixture(scope="module")
def sound_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "sound.gguf"
    metadata = {
        "general.architecture": "llama",
        "general.alignment": 32,
        "llama.block_count": 2,
        "llama.rope.freq_base": 1e4,
        "tokenizer.ggml.tokens": ["a", "é", "日本"],
        "tokenizer.ggml.scores": [0.5, -1.0, 2.0],
        "tokenizer.ggml.add_bos_token": True,
        "nested": [[1, 2], [3]],
    }
    blocks = np.arange(4 * 36, dtype=np.uint8)
    tensors = [("a", (4, 64), BlockType.Q4_0, blocks), ("b", (3,), BlockType.F32, np.zeros(12, np.uint8))]
    write_gguf(path, metadata, tensors)  # type: ignore[arg-type]  # dict is invariant in its values
    return path.read_bytes()


def open_and_read_everything(path: Path) -> None:
    with GGUFFile.open(path) as file:
        for name in file.metadata:
            assert file.metadata[name] is not None
        for name, info in file.tensors.items():
            assert file.raw(name).sum() >= 0
            assert len(file.raw(name)) == info.size_bytes


EDIT = st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8))


@settings(max_examples=600, deadline=1000)
@given(edits=st.lists(EDIT, max_size=4), keep=st.one_of(st.just(1.0), st.floats(0, 1)))
def test_any_mutation_of_a_sound_file_opens_or_is_refused_politely(
    edits: list[tuple[float, bytes]], keep: float, sound_bytes: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(sound_bytes)
    for where, replacement in edits:
        start = int(where * len(content))
        content[start : start + len(replacement)] = replacement
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(content[: int(keep * len(content))])
    try:
        open_and_read_everything(path)
    except LocalLLMError as error:
        assert str(path) in error.message
