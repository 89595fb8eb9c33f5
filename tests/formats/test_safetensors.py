"""safetensors folders agree with the safetensors package; damaged and hostile ones are refused in a sentence."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from localllm.errors import BadModelFile, LocalLLMError, ModelNotFound, UnsupportedModel
from localllm.formats.safetensors import INDEX_NAME, SafetensorsFolder

ARRAYS: dict[str, NDArray[Any]] = {
    "f32": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "f16": np.array([1.5, -2.0], np.float16),
    "f64": np.array([[0.1]], np.float64),
    "i64": np.array([2**40, -1], np.int64),
    "u8": np.arange(5, dtype=np.uint8),
    "flag": np.array([True, False, True]),
    "scalar": np.array(3.0, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}


def crafted(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_single_file_gives_the_arrays_that_were_saved(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "m.safetensors", metadata={"format": "pt"})
    with SafetensorsFolder.open(tmp_path / "m.safetensors") as folder:
        assert folder.tensors.keys() == ARRAYS.keys()
        for name, saved in ARRAYS.items():
            read = folder.array(name)
            assert np.array_equal(read, saved)
            assert (read.dtype, read.shape) == (saved.dtype, folder.tensors[name].shape)
            assert read.size == 0 or not read.flags.writeable
        assert folder.config == {}
        assert folder.size_bytes == (tmp_path / "m.safetensors").stat().st_size
        folder.release("f32")
        folder.release()
        assert np.array_equal(folder.array("f32"), ARRAYS["f32"])


def test_a_mark_that_an_editor_put_before_json_is_passed_over(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "a.safetensors")
    index = {"weight_map": {name: "a.safetensors" for name in ARRAYS}}
    for name, said in (("config.json", {"model_type": "llama"}), (INDEX_NAME, index)):
        (tmp_path / name).write_text(json.dumps(said), encoding="utf-8-sig")
    with SafetensorsFolder.open(tmp_path) as folder:
        assert folder.config == {"model_type": "llama"}
        assert folder.tensors.keys() == ARRAYS.keys()


def test_bfloat16_comes_as_bits_and_as_float32(tmp_path: Path) -> None:
    bits = np.array([0x3F80, 0xC000, 0x7F80], np.uint16)
    crafted(tmp_path / "m.safetensors", {"w": entry("BF16", [3], 0, 6)}, bits.tobytes())
    with SafetensorsFolder.open(tmp_path / "m.safetensors") as folder:
        assert folder.tensors["w"].dtype == "BF16"
        assert np.array_equal(folder.array("w"), bits)
        assert folder.as_float32("w").tolist() == [1.0, -2.0, float("inf")]


def test_floats_are_read_as_float32_and_other_types_are_named(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "m.safetensors")
    with SafetensorsFolder.open(tmp_path / "m.safetensors") as folder:
        for name in ("f16", "f32", "f64", "scalar", "empty"):
            assert np.array_equal(folder.as_float32(name), ARRAYS[name].astype(np.float32))
        with pytest.raises(UnsupportedModel, match="I64"):
            folder.as_float32("i64")


def test_a_packed_dtype_is_listed_but_not_read(tmp_path: Path) -> None:
    crafted(tmp_path / "m.safetensors", {"w": entry("F4", [2, 4], 0, 4)}, bytes(4))
    with SafetensorsFolder.open(tmp_path) as folder:
        assert folder.tensors["w"].size_bytes == 4
        with pytest.raises(UnsupportedModel, match="F4"):
            folder.array("w")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder of two shards with index and configuration, the files being links as in a download cache."""
    folder, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    folder.mkdir()
    blobs.mkdir()
    weight_map: dict[str, str] = {}
    for part, names in enumerate((("f32", "u8"), ("f16", "i64")), 1):
        shard = f"model-{part:05d}-of-00002.safetensors"
        save_file({name: ARRAYS[name] for name in names}, blobs / f"sha{part}")
        (folder / shard).symlink_to(blobs / f"sha{part}")
        weight_map |= dict.fromkeys(names, shard)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "pytorch_model.bin").write_bytes(b"never looked at")
    return folder


def test_shards_are_found_through_the_index(sharded: Path) -> None:
    with SafetensorsFolder.open(sharded) as folder:
        assert [path.name[:11] for path in folder.paths] == ["model-00001", "model-00002"]
        assert folder.config == {"model_type": "llama"}
        assert folder.tensors["i64"].part == 1
        for name in ("f32", "u8", "f16", "i64"):
            assert np.array_equal(folder.array(name), ARRAYS[name])


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "x.bin", ".safetensors", "", 3],
)
def test_an_index_may_only_name_files_beside_it(shard: Any, sharded: Path) -> None:
    (sharded / INDEX_NAME).write_text(json.dumps({"weight_map": {"f32": shard}}))
    with pytest.raises(BadModelFile, match="weight_map"):
        SafetensorsFolder.open(sharded)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "nonsense", "\xff"])
def test_a_broken_index_is_named(index: str, sharded: Path) -> None:
    (sharded / INDEX_NAME).write_bytes(index.encode("latin-1"))
    with pytest.raises(BadModelFile, match=r"index\.json"):
        SafetensorsFolder.open(sharded)


def test_a_tensor_that_its_shard_lacks_is_named(sharded: Path) -> None:
    (sharded / INDEX_NAME).write_text(json.dumps({"weight_map": {"other": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(BadModelFile, match="'other' is missing"):
        SafetensorsFolder.open(sharded)


def test_a_missing_shard_and_a_shard_that_is_a_folder_are_named(sharded: Path) -> None:
    shard = sharded / "model-00002-of-00002.safetensors"
    shard.unlink()
    with pytest.raises(ModelNotFound, match=shard.name):
        SafetensorsFolder.open(sharded)
    shard.mkdir()
    with pytest.raises(BadModelFile, match=shard.name):
        SafetensorsFolder.open(sharded)


def test_without_an_index_the_only_file_is_taken_and_several_are_refused(tmp_path: Path) -> None:
    save_file({"a": ARRAYS["f32"]}, tmp_path / "weights.safetensors")
    assert SafetensorsFolder.open(tmp_path).tensors.keys() == {"a"}
    save_file({"b": ARRAYS["f32"]}, tmp_path / "others.safetensors")
    with pytest.raises(BadModelFile, match="2 safetensors files"):
        SafetensorsFolder.open(tmp_path)
    save_file({"c": ARRAYS["f32"]}, tmp_path / "model.safetensors")
    assert SafetensorsFolder.open(tmp_path).tensors.keys() == {"c"}


def test_a_whole_set_of_shards_needs_no_index(tmp_path: Path) -> None:
    for part, name in enumerate(("f32", "f16"), 1):
        save_file({name: ARRAYS[name]}, tmp_path / f"model-{part:05d}-of-00002.safetensors")
    save_file({"lora": ARRAYS["f32"]}, tmp_path / "adapter_model.safetensors")
    with SafetensorsFolder.open(tmp_path) as folder:
        assert folder.tensors.keys() == {"f32", "f16"}
        assert np.array_equal(folder.array("f16"), ARRAYS["f16"])
    save_file({"f32": ARRAYS["f32"]}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(BadModelFile, match="'f32' is in another shard"):
        SafetensorsFolder.open(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").rename(tmp_path / "model-00003-of-00003.safetensors")
    with pytest.raises(BadModelFile, match="2 safetensors files"):
        SafetensorsFolder.open(tmp_path)


def test_a_folder_with_only_pickle_checkpoints_is_refused_by_that_name(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        SafetensorsFolder.open(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(BadModelFile, match="pickle"):
        SafetensorsFolder.open(tmp_path)


W = entry("F32", [2], 0, 8)
HOSTILE: dict[str, tuple[Any, bytes, int | None]] = {
    "header_longer_than_the_file": ({"w": W}, bytes(8), 10**6),
    "header_length_huge": ({"w": W}, bytes(8), 2**64 - 1),
    "header_not_json": (b"{nonsense", b"", None),
    "header_not_utf8": (b'{"\xff": 1}', b"", None),
    "header_a_list": ([], b"", None),
    "header_nested_deeply": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"", None),
    "number_with_very_many_digits": (b'{"a":' + b"9" * 10_000 + b"}", b"", None),
    "duplicate_name": (b'{"w":%s,"w":%s}' % ((json.dumps(W).encode(),) * 2), bytes(8), None),
    "entry_not_an_object": ({"w": 3}, b"", None),
    "entry_without_offsets": ({"w": {"dtype": "F32", "shape": [2]}}, bytes(8), None),
    "dtype_unknown": ({"w": entry("F31", [2], 0, 8)}, bytes(8), None),
    "dtype_a_list": ({"w": entry([], [2], 0, 8)}, bytes(8), None),  # type: ignore[arg-type]  # wrong on purpose
    "shape_negative": ({"w": entry("F32", [-2], 0, 8)}, bytes(8), None),
    "shape_of_floats": ({"w": entry("F32", [2.0], 0, 8)}, bytes(8), None),
    "shape_of_booleans": ({"w": entry("F32", [True], 0, 4)}, bytes(4), None),
    "shape_overflows": ({"w": entry("F32", [2**62, 2**62], 0, 8)}, bytes(8), None),
    "shape_empty_but_vast": ({"w": entry("F64", [0, 2**63 - 1, 5], 0, 0)}, b"", None),
    "shape_empty_and_beyond_numpy": ({"w": entry("U8", [2**70, 0], 0, 0)}, b"", None),
    "shape_does_not_match": ({"w": entry("F32", [3], 0, 8)}, bytes(8), None),
    "offsets_reversed": ({"w": entry("F32", [2], 8, 0)}, bytes(8), None),
    "offsets_past_the_end": ({"w": entry("F32", [2], 0, 8)}, bytes(7), None),
    "offsets_far_away": ({"w": entry("F32", [2], 2**62, 2**62 + 8)}, bytes(8), None),
    "offsets_overlap": ({"a": W, "b": entry("F32", [2], 4, 12)}, bytes(12), None),
    "offsets_leave_a_hole": ({"a": W, "b": entry("F32", [2], 12, 20)}, bytes(20), None),
    "bytes_left_over": ({"w": W}, bytes(9), None),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused(case: str, tmp_path: Path) -> None:
    header, data, length = HOSTILE[case]
    path = crafted(tmp_path / "m.safetensors", header, data, length=length)
    with pytest.raises(BadModelFile) as caught:
        SafetensorsFolder.open(path)
    assert str(path) in caught.value.message
    assert len(caught.value.message) < 1000


def test_a_file_shorter_than_its_length_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"\0\0\0")
    with pytest.raises(BadModelFile, match="header length"):
        SafetensorsFolder.open(tmp_path)


@settings(max_examples=300, deadline=1000)
@given(
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=6)), max_size=3),
    keep=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_any_mutation_opens_or_is_refused_politely(
    edits: list[tuple[float, bytes]], keep: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    save_file(ARRAYS, path)
    content = bytearray(path.read_bytes())
    for where, replacement in edits:
        start = int(where * len(content))
        content[start : start + len(replacement)] = replacement
    path.write_bytes(content[: int(keep * len(content))])
    try:
        with SafetensorsFolder.open(path) as folder:
            for name, info in folder.tensors.items():
                assert folder.array(name).nbytes == info.size_bytes
    except LocalLLMError as error:
        assert error.message
