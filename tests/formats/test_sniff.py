"""Files are told apart by their bytes; pickles are refused and never opened."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from localllm.errors import BadModelFile, ModelNotFound
from localllm.formats.gguf_write import write_gguf
from localllm.formats.sniff import model_kind, sniff


class Bomb:
    """Unpickling this ends the test run."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (99,)


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), pickle.dumps(Bomb()))  # without the hour: test ids are of its bytes
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "m.pt", "m.ckpt", "model.safetensors", "model.gguf", "model"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_seen_under_any_name(name: str, protocol: int, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(), protocol))
    assert sniff(tmp_path / name) == "pickle"
    with pytest.raises(BadModelFile, match="pickle checkpoint"):
        model_kind(tmp_path / name)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf"])
def test_a_zip_with_a_pickle_is_seen_under_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(zipped("archive/data.pkl"))
    assert sniff(tmp_path / name) == "pickle"


@pytest.mark.parametrize("name", ["a.bin", "a.PT", "a.pth", "a.ckpt"])
def test_a_text_pickle_has_no_magic_so_its_name_tells(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(), 0))
    assert sniff(tmp_path / name) == "pickle"


def test_models_are_known_by_their_bytes_whatever_their_names(tmp_path: Path) -> None:
    write_gguf(tmp_path / "ggml-model.bin", {}, [])
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "weights.bin")
    assert model_kind(tmp_path / "ggml-model.bin") == "gguf"
    assert model_kind(tmp_path / "weights.bin") == "safetensors"
    assert model_kind(tmp_path) == "folder"


def test_a_safetensors_header_that_begins_like_a_pickle_is_still_safetensors(tmp_path: Path) -> None:
    header = b"{}".ljust(0x0280)  # the length's first bytes are 80 02, as in a pickle of protocol 2
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert sniff(tmp_path / "m.safetensors") == "safetensors"


@pytest.mark.parametrize("content", [b"", b"GGU", b"hello", b"tjgg\3\0\0\0", zipped("readme.txt")], ids=str)
def test_anything_else_is_unknown_and_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    assert sniff(tmp_path / "file") == "unknown"
    with pytest.raises(BadModelFile, match="neither"):
        model_kind(tmp_path / "file")


def test_missing_paths_and_pipes_are_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelNotFound):
        sniff(tmp_path / "none")
    with pytest.raises(BadModelFile, match="regular"):
        sniff(tmp_path / "pipe")
