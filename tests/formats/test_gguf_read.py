"""The reader sees what the `gguf` package sees, in whole files and in split ones."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from localllm.errors import BadModelFile, ModelNotFound, NotEnoughMemory
from localllm.formats.blocks import BlockType
from localllm.formats.gguf_read import GGUFFile, ValueType

SCALARS = {
    "t.uint8": (gguf.GGUFValueType.UINT8, 250),
    "t.int8": (gguf.GGUFValueType.INT8, -3),
    "t.uint16": (gguf.GGUFValueType.UINT16, 65000),
    "t.int16": (gguf.GGUFValueType.INT16, -30000),
    "t.uint32": (gguf.GGUFValueType.UINT32, 4_000_000_000),
    "t.int32": (gguf.GGUFValueType.INT32, -2_000_000_000),
    "t.float32": (gguf.GGUFValueType.FLOAT32, 0.5),
    "t.bool": (gguf.GGUFValueType.BOOL, True),
    "t.string": (gguf.GGUFValueType.STRING, "grüße\n日本"),
    "t.uint64": (gguf.GGUFValueType.UINT64, 2**64 - 1),
    "t.int64": (gguf.GGUFValueType.INT64, -(2**62)),
    "t.float64": (gguf.GGUFValueType.FLOAT64, 1e300),
}
ARRAYS: dict[str, list[Any]] = {
    "a.int32": [1, -2, 3],
    "a.float": [0.25, -8.0],
    "a.bool": [True, False, True],
    "a.string": ["", "a", "▁日本", "x" * 300],
}


def oracle_file(path: Path, *, split_max_tensors: int = 0) -> None:
    """A file with every metadata type and a few tensors, written by the `gguf` package."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split_max_tensors)
    for name, (kind, value) in SCALARS.items():
        writer.add_key_value(name, value, kind)
    for name, values in ARRAYS.items():
        writer.add_array(name, values)
    writer.add_array("a.big", list(range(5000)))
    writer.add_string("a.long_string", "y" * 100_000)
    for index in range(6):
        writer.add_tensor(f"blk.{index}.w", np.full((3, 32), index, np.float32))
    quantized = gguf.quants.quantize(
        np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64), gguf.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("quantized", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[GGUFFile]:
    oracle_file(tmp_path / "f.gguf")
    with GGUFFile.open(tmp_path / "f.gguf") as opened:
        yield opened


def test_every_metadata_type_is_read(file: GGUFFile) -> None:
    for name, (kind, value) in SCALARS.items():
        assert file.metadata[name] == value
        assert type(file.metadata[name]) is type(value)
        assert int(file.metadata.type_of(name)) == int(kind)
    for name, values in ARRAYS.items():
        assert file.metadata[name] == values
        assert file.metadata.length_of(name) == len(values)
    assert file.metadata["a.big"] == list(range(5000))
    assert file.metadata["a.long_string"] == "y" * 100_000
    assert file.metadata.type_of("a.string") is ValueType.STRING


def test_metadata_is_an_ordinary_mapping(file: GGUFFile) -> None:
    assert file.architecture == "llama"
    assert next(iter(file.metadata)) == "general.architecture"
    assert "none" not in file.metadata
    assert file.metadata.get("none") is None
    assert dict(file.metadata)["t.int8"] == -3
    with pytest.raises(KeyError):
        file.metadata["none"]


def test_tensors_have_numpy_shapes_and_the_bytes_of_the_file(file: GGUFFile) -> None:
    oracle = gguf.GGUFReader(file.paths[0])
    assert list(file.tensors) == [tensor.name for tensor in oracle.tensors]
    for tensor in oracle.tensors:
        info = file.tensors[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert (info.offset, info.size_bytes) == (tensor.data_offset, tensor.n_bytes)
        assert int(info.type) == int(tensor.tensor_type)
        assert file.raw(tensor.name).tobytes() == tensor.data.tobytes()
    assert file.tensors["quantized"].type is BlockType.Q8_0
    assert file.size_bytes == file.paths[0].stat().st_size


def test_raw_blocks_are_a_view_that_cannot_be_written(file: GGUFFile) -> None:
    assert not file.raw("blk.1.w").flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        file.raw("blk.1.w")[0] = 1


def test_released_pages_leave_memory_and_read_the_same_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("w", np.arange(4 << 20, dtype=np.float32))  # 16 MiB
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile.open(path) as file:
        before = int(file.raw("w").astype(np.uint64).sum())
        resident = _file_pages_kib(path)
        file.release("w")
        assert _file_pages_kib(path) <= resident / 4
        assert int(file.raw("w").astype(np.uint64).sum()) == before
        file.release()


def _file_pages_kib(path: Path) -> int:
    """Resident KiB of the mapping of a file; 0 where the system does not tell."""
    if not os.path.exists("/proc/self/smaps"):
        return 0
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(str(path)):
            return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
    raise AssertionError(f"{path} is not mapped")


def test_a_closed_file_gives_no_more_views_but_keeps_those_it_gave(file: GGUFFile) -> None:
    view = file.raw("blk.2.w")
    file.close()
    assert view.view(np.float32)[0] == 2.0
    with pytest.raises(ValueError, match="closed"):
        file.raw("blk.2.w")
    file.close()


def test_small_metadata_outlives_the_file_and_arrays_say_that_they_do_not(tmp_path: Path) -> None:
    oracle_file(tmp_path / "f.gguf")
    with GGUFFile.open(tmp_path / "f.gguf") as file:
        decoded = file.metadata["a.int32"]
    assert file.metadata["t.string"] == SCALARS["t.string"][1]
    assert file.metadata["a.int32"] is decoded
    with pytest.raises(ValueError, match=r"a\.big must be read before"):
        file.metadata["a.big"]


def test_a_file_with_only_a_vocabulary_opens(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "vocab.gguf", "some-future-architecture")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with GGUFFile.open(tmp_path / "vocab.gguf") as file:
        assert len(file.tensors) == 0
        assert file.metadata["tokenizer.ggml.tokens"] == ["a", "b"]
        file.release()


def test_a_missing_architecture_is_named(tmp_path: Path) -> None:
    (tmp_path / "f.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    with GGUFFile.open(tmp_path / "f.gguf") as file, pytest.raises(BadModelFile, match=r"general\.architecture"):
        _ = file.architecture


@pytest.fixture
def split(tmp_path: Path) -> list[Path]:
    oracle_file(tmp_path / "m.gguf", split_max_tensors=3)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) == 3
    return parts


def test_any_part_of_a_split_opens_all_of_it(split: list[Path]) -> None:
    for part in split:
        with GGUFFile.open(part) as file:
            assert list(file.paths) == split
            assert [info.part for info in file.tensors.values()] == [0, 0, 0, 1, 1, 1, 2]
            assert file.raw("blk.5.w").view(np.float32).tolist() == [5.0] * 96
            assert file.architecture == "llama"
            assert file.size_bytes == sum(path.stat().st_size for path in split)


def test_parts_reached_through_links_find_each_other(split: list[Path], tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    snapshot.mkdir()
    blobs.mkdir()
    for index, part in enumerate(split):
        part.rename(blobs / f"sha{index}")
        (snapshot / part.name).symlink_to(blobs / f"sha{index}")
    with GGUFFile.open(snapshot / split[1].name) as file:
        assert len(file.tensors) == 7


def test_a_missing_part_is_named(split: list[Path]) -> None:
    split[2].unlink()
    with pytest.raises(ModelNotFound, match="m-00003-of-00003"):
        GGUFFile.open(split[0])


def test_a_part_under_a_false_name_is_refused(split: list[Path], tmp_path: Path) -> None:
    shutil.copy(split[0], tmp_path / "alone.gguf")
    with pytest.raises(BadModelFile, match=r"split\.count is 3"):
        GGUFFile.open(tmp_path / "alone.gguf")
    shutil.copy(split[0], split[1])
    with pytest.raises(BadModelFile, match=r"split\.no is 0"):
        GGUFFile.open(split[2])


def renamed_in_place(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new))


def test_a_tensor_in_two_parts_is_refused(split: list[Path]) -> None:
    renamed_in_place(split[1], b"blk.3.w", b"blk.0.w")
    with pytest.raises(BadModelFile, match=r"'blk\.0\.w' is there twice"):
        GGUFFile.open(split[0])


def test_a_split_that_lacks_tensors_is_refused(split: list[Path]) -> None:
    count = b"split.tensors.count" + (5).to_bytes(4, "little")
    renamed_in_place(split[0], count + (7).to_bytes(4, "little"), count + (8).to_bytes(4, "little"))
    with pytest.raises(BadModelFile, match="count is 8, but the parts hold 7"):
        GGUFFile.open(split[0])


def test_a_part_number_beyond_the_count_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match="part 4 of 3"):
        GGUFFile.open(tmp_path / "m-00004-of-00003.gguf")


def test_a_file_that_is_cut_while_its_metadata_is_read_costs_no_process(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    oracle_file(path)
    script = (
        "import os, sys; from localllm.formats.gguf_read import GGUFFile;"
        "file = GGUFFile.open(sys.argv[1]); os.truncate(sys.argv[1], 0);"
        "print(len(file.metadata['a.big']), file.metadata['a.string'][1], len(file.metadata['a.long_string']))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script, str(path)], env=env, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"5000 a 100000\n")


@pytest.mark.parametrize("front_bytes", [1, 17, 100, 4096, 100_000])
def test_a_header_of_any_length_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, front_bytes: int
) -> None:
    path = tmp_path / "x.gguf"
    oracle_file(path)
    with GGUFFile.open(path) as file:
        whole, tensors = file.metadata.typed(), dict(file.tensors)
    monkeypatch.setattr("localllm.formats.gguf_read.FRONT_BYTES", front_bytes)
    with GGUFFile.open(path) as file:
        assert file.metadata.typed() == whole and dict(file.tensors) == tensors


def test_a_file_that_has_no_room_in_memory_is_not_said_to_be_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.gguf"
    oracle_file(path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("localllm.formats.mapped.mmap.mmap", refuse)
    with pytest.raises(NotEnoughMemory, match=r"x\.gguf") as caught:
        GGUFFile.open(path)
    assert "ulimit" in caught.value.hint


def test_a_header_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.gguf"
    oracle_file(path)
    monkeypatch.setattr("localllm.formats.gguf_read.FRONT_BYTES", 1024)
    monkeypatch.setattr("localllm.formats.gguf_read.MAX_FRONT_BYTES", 4096)
    with pytest.raises(BadModelFile, match="before the tensors"):
        GGUFFile.open(path)
