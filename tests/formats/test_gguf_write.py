"""What we write, the `gguf` package reads; what is not whole never takes the file's name."""

import errno
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.errors import DiskFull, StoreError
from localllm.formats.blocks import BlockType, decode, encode
from localllm.formats.gguf_read import GGUFFile, ValueType
from localllm.formats.gguf_write import Tensor, write_gguf

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "small": 7,
    "negative": -7,
    "large": 2**40,
    "huge": 2**64 - 1,
    "float": 0.25,
    "flag": False,
    "double": (ValueType.FLOAT64, 1e-300),
    "byte": (ValueType.UINT8, 200),
    "tokens": ["a", "", "日本"],
    "scores": [0.5, -1.0],
    "kinds": [1, 3, -6],
    "flags": [True, False],
    "bytes": (ValueType.UINT8, [1, 2, 255]),
    "nothing": (ValueType.STRING, []),
    "nested": [[1, 2], [3]],
}
WEIGHTS = np.linspace(-2, 2, 4 * 64, dtype=np.float32).reshape(4, 64)


def tensors() -> list[Tensor]:
    return [
        ("scale", (3,), BlockType.F32, encode(BlockType.F32, np.ones(3))),
        ("quantized", (4, 64), BlockType.Q4_0, encode(BlockType.Q4_0, WEIGHTS)),
        ("late", (2, 2, 64), BlockType.BF16, lambda: encode(BlockType.BF16, WEIGHTS.reshape(2, 2, 64))),
    ]


def test_the_gguf_package_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "f.gguf"
    write_gguf(path, METADATA, tensors())
    oracle = gguf.GGUFReader(path)
    for name, value in METADATA.items():
        if name not in ("nothing", "nested"):  # the package cannot read these two
            assert oracle.fields[name].contents() == (value[1] if isinstance(value, tuple) else value)
    assert [(t.name, t.shape.tolist(), int(t.tensor_type)) for t in oracle.tensors] == [
        ("scale", [3], 0),
        ("quantized", [64, 4], 2),
        ("late", [64, 2, 2], 30),
    ]
    assert oracle.tensors[1].data.tobytes() == encode(BlockType.Q4_0, WEIGHTS).tobytes()


def test_types_are_inferred_as_other_writers_choose_them(tmp_path: Path) -> None:
    write_gguf(tmp_path / "f.gguf", METADATA, [])
    with GGUFFile.open(tmp_path / "f.gguf") as file:
        kinds = {name: file.metadata.type_of(name).name for name in METADATA}
    assert kinds == {
        "general.architecture": "STRING",
        "small": "UINT32",
        "negative": "INT32",
        "large": "INT64",
        "huge": "UINT64",
        "float": "FLOAT32",
        "flag": "BOOL",
        "double": "FLOAT64",
        "byte": "UINT8",
        "tokens": "STRING",
        "scores": "FLOAT32",
        "kinds": "INT32",
        "flags": "BOOL",
        "bytes": "UINT8",
        "nothing": "STRING",
        "nested": "ARRAY",
    }


def test_reading_and_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    write_gguf(tmp_path / "one.gguf", METADATA, tensors())
    with GGUFFile.open(tmp_path / "one.gguf") as file:
        copies: list[Tensor] = [(t.name, t.shape, t.type, file.raw(t.name)) for t in file.tensors.values()]
        write_gguf(tmp_path / "two.gguf", file.metadata.typed(), copies)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


@pytest.mark.parametrize("alignment", [1, 8, 256])
def test_the_alignment_asked_for_is_kept(alignment: int, tmp_path: Path) -> None:
    write_gguf(tmp_path / "f.gguf", {"general.alignment": alignment}, tensors())
    with GGUFFile.open(tmp_path / "f.gguf") as file:
        assert all(tensor.offset % alignment == 0 for tensor in file.tensors.values())
        assert np.array_equal(decode(BlockType.F32, file.raw("scale"), (3,)), np.ones(3))


SCALARS = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text(max_size=20), st.floats(width=32, allow_nan=False)
)
LISTS = st.one_of(
    st.lists(st.booleans(), min_size=1, max_size=5),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
    st.lists(st.text(max_size=5), min_size=1, max_size=5),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
)
METADATA_OF_ANY_KIND = st.dictionaries(
    st.text(min_size=1, max_size=10).filter(lambda key: not key.startswith(("general.", "split."))),
    st.one_of(SCALARS, LISTS),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(metadata=METADATA_OF_ANY_KIND)
def test_any_metadata_survives_the_round_trip(
    metadata: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.gguf"
    write_gguf(path, metadata, [])
    with GGUFFile.open(path) as file:
        assert dict(file.metadata) == metadata


def test_a_failed_write_leaves_the_old_file_and_no_dust(tmp_path: Path) -> None:
    path = tmp_path / "f.gguf"
    write_gguf(path, {"version": 1}, [])
    before = path.read_bytes()

    def broken() -> Any:
        raise RuntimeError("no such weights")

    with pytest.raises(RuntimeError):
        write_gguf(path, {"version": 2}, [*tensors(), ("broken", (4,), BlockType.F32, broken)])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_called_a_full_disk(tmp_path: Path) -> None:
    def full() -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFull, match=r"f\.gguf"):
        write_gguf(tmp_path / "f.gguf", {}, [("w", (4,), BlockType.F32, full)])


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none/f\.gguf"):
        write_gguf(tmp_path / "none" / "f.gguf", {}, [])


FLOATS = np.zeros(16, np.uint8)


@pytest.mark.parametrize(
    ("metadata", "tensor"),
    [
        ({"general.alignment": 3}, None),
        ({"": 1}, None),
        ({"k": 2**64}, None),
        ({"k": (ValueType.UINT8, 256)}, None),
        ({}, ("n" * 64, (4,), BlockType.F32, FLOATS)),
        ({}, ("w", (5,), BlockType.F32, FLOATS)),
        ({}, ("w", (0,), BlockType.F32, FLOATS)),
        ({}, ("w", (1, 1, 1, 1, 4), BlockType.F32, FLOATS)),
        ({}, ("w", (4,), BlockType.F32, FLOATS.view(np.float32))),
    ],
    ids=str,
)
def test_what_no_reader_could_read_is_not_written(
    metadata: dict[str, Any], tensor: Tensor | None, tmp_path: Path
) -> None:
    with pytest.raises(ValueError):
        write_gguf(tmp_path / "f.gguf", metadata, [tensor] if tensor else [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [[], [1, "a"], None, (ValueType.UINT32, "text"), (ValueType.STRING, 3)], ids=str)
def test_values_without_a_gguf_type_are_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_gguf(tmp_path / "f.gguf", {"k": value}, [])
