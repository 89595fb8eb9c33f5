"""A file is quantized whole or not at all, tensor by tensor, and a killed run loses one tensor at most."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.errors import BadModelFile, DiskFull, StoreError, UnsupportedModel, UsageError
from localllm.formats.blocks import BlockType, decode
from localllm.formats.gguf_metadata import ValueType
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.gguf_write import write_gguf
from localllm.quantize.encode import encode
from localllm.quantize.journal import Journal
from localllm.quantize.quantize import plan, quantize
from localllm.quantize.recipes import RECIPES
from localllm.quantize.weights import Weight, Weights, gguf_weights
from tests.quantize.tiny_files import MODELS, Tiny

TINY = Tiny("tiny", layers=2)


def write(folder: Path, kind: BlockType = BlockType.F32, model: Tiny = TINY) -> Path:
    return model.write(folder / f"{kind.name}.gguf", kind)


def run(source: Path, target: Path, recipe: str = "Q4_K_M", **options: object) -> None:
    with GGUFFile.open(source) as file:
        weights = gguf_weights(file)
        quantize(weights, target, plan(weights, recipe), **options)  # type: ignore[arg-type]  # passed on as they are


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("kind", [BlockType.F32, BlockType.F16, BlockType.BF16], ids=lambda kind: kind.name)
def test_every_tensor_is_encoded_as_planned_and_the_rest_is_copied(kind: BlockType, tmp_path: Path) -> None:
    source, target = write(tmp_path, kind), tmp_path / "out.gguf"
    run(source, target)
    with GGUFFile.open(source) as before, GGUFFile.open(target) as after:
        types = {line.name: line.target_type for line in plan(gguf_weights(before), "q4_k_m").tensors}
        assert {info.name: info.type for info in after.tensors.values()} == types
        assert list(before.tensors) == list(after.tensors)
        for name, info in before.tensors.items():
            values = decode(info.type, before.raw(name), info.shape)
            wanted = before.raw(name) if types[name] == info.type else encode(types[name], values).reshape(-1)
            assert np.array_equal(after.raw(name), wanted), name
    assert left_in(tmp_path) == {source.name, target.name}


def test_the_metadata_is_the_sources_with_its_types_and_says_what_was_done(tmp_path: Path) -> None:
    own = {
        **TINY.metadata(),
        "general.file_type": (ValueType.UINT32, 0),
        "tokenizer.ggml.tokens": (ValueType.STRING, ["a", "b"]),
        "tokenizer.ggml.scores": (ValueType.FLOAT32, [0.5, -1.0]),
        "tokenizer.chat_template": "{{ messages }}",
        "of.its.own": (ValueType.INT8, -3),
    }
    raw = np.ones((2, 256), np.float32).view(np.uint8).reshape(-1)
    write_gguf(tmp_path / "float.gguf", own, [("token_embd.weight", (2, 256), BlockType.F32, raw)])
    run(tmp_path / "float.gguf", tmp_path / "out.gguf", "Q5_K_M", extra={"localllm.note": "hello"})
    with GGUFFile.open(tmp_path / "float.gguf") as before, GGUFFile.open(tmp_path / "out.gguf") as after:
        expected = before.metadata.typed()
        expected["general.file_type"] = (ValueType.UINT32, RECIPES["Q5_K_M"].file_type)
        expected["general.quantization_version"] = (ValueType.UINT32, 2)
        expected["localllm.note"] = (ValueType.STRING, "hello")
        assert after.metadata.typed() == expected


def test_the_parts_of_a_split_file_become_one_file(tmp_path: Path) -> None:
    whole = write(tmp_path)
    with GGUFFile.open(whole) as file:
        infos = list(file.tensors.values())
        for part, some in enumerate((infos[:4], infos[4:])):
            numbers = {"split.no": part, "split.count": 2, "split.tensors.count": len(infos)}
            typed = {key: (ValueType.UINT16, value) for key, value in numbers.items()}
            tensors = [(info.name, info.shape, info.type, file.raw(info.name)) for info in some]
            front = file.metadata.typed() if part == 0 else {}
            write_gguf(tmp_path / f"m-{part + 1:05d}-of-00002.gguf", {**front, **typed}, tensors)
    run(tmp_path / "m-00001-of-00002.gguf", tmp_path / "of-parts.gguf")
    run(whole, tmp_path / "of-whole.gguf")
    assert (tmp_path / "of-parts.gguf").read_bytes() == (tmp_path / "of-whole.gguf").read_bytes()


def test_importance_reaches_the_tensors_it_is_for(tmp_path: Path) -> None:
    source = write(tmp_path)
    weights = np.linspace(1, 30, 256).astype(np.float32)
    name = "blk.1.ffn_up.weight"
    run(source, tmp_path / "with.gguf", weights_of=lambda of: weights if of == name else None)
    run(source, tmp_path / "without.gguf")
    with (
        GGUFFile.open(source) as before,
        GGUFFile.open(tmp_path / "with.gguf") as one,
        GGUFFile.open(tmp_path / "without.gguf") as other,
    ):
        assert {of for of in one.tensors if not np.array_equal(one.raw(of), other.raw(of))} == {name}
        values = decode(BlockType.F32, before.raw(name), before.tensors[name].shape)
        assert np.array_equal(one.raw(name), encode(BlockType.Q4_K, values, weights).reshape(-1))


def test_blocks_are_rounded_again_only_when_allowed(tmp_path: Path) -> None:
    source = write(tmp_path, BlockType.Q8_0)
    with pytest.raises(UsageError, match=r"Q8_0.*second time") as refusal:
        run(source, tmp_path / "out.gguf", "Q4_0")
    assert "--allow-requantize" in refusal.value.hint
    assert left_in(tmp_path) == {source.name}
    run(source, tmp_path / "out.gguf", "Q4_0", allow_requantize=True)
    with GGUFFile.open(source) as before, GGUFFile.open(tmp_path / "out.gguf") as after:
        name = "blk.0.attn_q.weight"
        values = decode(BlockType.Q8_0, before.raw(name), before.tensors[name].shape)
        assert np.array_equal(after.raw(name), encode(BlockType.Q4_0, values).reshape(-1))


def test_a_file_that_is_there_is_replaced_only_when_allowed(tmp_path: Path) -> None:
    source, target = write(tmp_path), tmp_path / "out.gguf"
    target.write_text("mine")
    with pytest.raises(UsageError, match="there already"):
        run(source, target)
    assert target.read_text() == "mine"
    run(source, target, replaces=True)
    assert target.read_bytes()[:4] == b"GGUF"
    with pytest.raises(UsageError, match="is a folder"):
        run(source, tmp_path)
    with pytest.raises(StoreError, match="does not exist"):
        run(source, tmp_path / "nowhere" / "out.gguf")


@pytest.mark.parametrize("kind", [BlockType.F32, BlockType.F16, BlockType.BF16], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["blk.1.ffn_down.weight", "blk.1.attn_q_norm.weight"])
def test_a_value_that_is_no_number_is_refused_with_tensor_and_row(kind: BlockType, name: str, tmp_path: Path) -> None:
    source = write(tmp_path, kind)
    with GGUFFile.open(source) as file:
        offset, size = file.tensors[name].offset, file.tensors[name].size_bytes
    with open(source, "r+b") as file:
        file.seek(offset + size - 8)
        file.write(b"\xff" * 4)
    with pytest.raises(BadModelFile, match=rf"{name}.*row 1"):
        run(source, tmp_path / "out.gguf")
    assert left_in(tmp_path) == {source.name}


def test_a_value_beyond_the_type_is_refused_with_tensor_and_row(tmp_path: Path) -> None:
    raw = np.array([[1.0] * 256, [1e20] * 256], np.float32).view(np.uint8).reshape(-1)
    tensors = [("token_embd.weight", (2, 256), BlockType.F32, raw)]
    write_gguf(tmp_path / "float.gguf", TINY.metadata(), tensors)
    with pytest.raises(UnsupportedModel, match=r"token_embd.*1e\+20.*row 1"):
        run(tmp_path / "float.gguf", tmp_path / "out.gguf", "Q8_0")
    assert left_in(tmp_path) == {"float.gguf"}


def test_a_damaged_source_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = write(tmp_path)
    whole = source.read_bytes()
    for damage in (whole[:-400], whole.replace(b"blk.1.attn_v", b"blk.1.attn_q", 1), whole[:1000]):
        source.write_bytes(damage)
        with pytest.raises(BadModelFile):
            run(source, tmp_path / "out.gguf")
        assert left_in(tmp_path) == {source.name}


def test_a_tensor_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    with GGUFFile.open(write(tmp_path)) as file:
        weights = gguf_weights(file)
        last = weights.tensors[-1]
        cut = replace(weights, tensors=(*weights.tensors[:-1], replace(last, raw=lambda: last.raw()[:-4])))
        with pytest.raises(BadModelFile, match=last.name):
            quantize(cut, tmp_path / "out.gguf", plan(cut, "F32"))
    assert left_in(tmp_path) == {"F32.gguf"}


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 5000))
        with pytest.raises(DiskFull, match=r"needs 0\.00 GB more"):
            run(source, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
    run(source, tmp_path / "out.gguf")


def test_a_disk_that_fills_up_leaves_no_file_and_the_same_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write(tmp_path), tmp_path / "out.gguf"
    write_at, count = Journal.write_at, iter(range(1000))

    def full(journal: Journal, offset: int, data: bytes | memoryview) -> None:
        if next(count) == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_at(journal, offset, data)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write_at", full)
        with pytest.raises(DiskFull):
            run(source, target)
    assert not target.exists()
    told: list[str] = []
    run(source, target, progress=lambda name, done, total: told.append(name))
    assert told[0] == "going on from tensor 7 of 21"
    run(source, tmp_path / "at-once.gguf")
    assert target.read_bytes() == (tmp_path / "at-once.gguf").read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
from localllm.formats.gguf_read import GGUFFile
from localllm.quantize.journal import Journal
from localllm.quantize.quantize import plan, quantize
from localllm.quantize.weights import gguf_weights

source, target, moment, when = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
left = [when]

def maybe():
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)

def before(journal, *arguments):
    maybe()
    return own(journal, *arguments)

def halfway(journal, offset, data):
    left[0] -= 1
    if left[0] < 0:
        own(journal, offset, bytes(data[: len(data) // 2]))
        journal.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    own(journal, offset, data)

own = getattr(Journal, {"writing": "write_at", "noting": "add", "finishing": "finish"}[moment])
setattr(Journal, own.__name__, halfway if moment == "writing" else before)
with GGUFFile.open(source) as file:
    weights = gguf_weights(file)
    quantize(weights, target, plan(weights, "Q4_K_M"))
"""


@pytest.mark.parametrize(
    ("moment", "when", "kept"), [("writing", 0, 0), ("writing", 9, 8), ("noting", 5, 5), ("finishing", 0, 21)]
)
def test_a_killed_run_leaves_no_file_and_is_gone_on_with(moment: str, when: int, kept: int, tmp_path: Path) -> None:
    source, target = write(tmp_path), tmp_path / "out.gguf"
    arguments = [sys.executable, "-c", textwrap.dedent(KILLED), str(source), str(target), moment, str(when)]
    ended = subprocess.run(arguments, cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not target.exists()
    read: list[str] = []
    with GGUFFile.open(source) as file:
        weights = watched(gguf_weights(file), read)
        quantize(weights, target, plan(weights, "Q4_K_M"))
    assert len(read) == 21 - kept
    run(source, tmp_path / "at-once.gguf")
    assert target.read_bytes() == (tmp_path / "at-once.gguf").read_bytes()
    assert left_in(tmp_path) == {source.name, "out.gguf", "at-once.gguf"}


def watched(weights: Weights, read: list[str]) -> Weights:
    """The same, noting which tensors are read."""

    def noting(weight: Weight) -> Weight:
        def raw() -> NDArray[np.uint8]:
            read.append(weight.name)
            return weight.raw()

        return replace(weight, raw=raw)

    return replace(weights, tensors=tuple(map(noting, weights.tensors)))


class Stopped(Exception):
    """What ends a run in the tests below."""


def begun(source: Path, target: Path, **options: object) -> None:
    """A run that was stopped before its last tensor."""

    def stop(name: str, done: int, total: int) -> None:
        if name == "blk.1.ffn_down.weight":
            raise Stopped

    with pytest.raises(Stopped):
        run(source, target, progress=stop, **options)


@pytest.mark.parametrize("change", ["another recipe", "another source", "another importance", "a damaged partial file"])
def test_nothing_of_another_run_gets_into_the_file(change: str, tmp_path: Path) -> None:
    source, target = write(tmp_path), tmp_path / "out.gguf"
    heavy = {"weights_of": lambda name: np.linspace(1, 9, 256).astype(np.float32)}
    begun(source, target, **heavy if change == "another importance" else {})
    recipe = "Q4_K_S" if change == "another recipe" else "Q4_K_M"
    if change == "another source":
        with open(source, "r+b") as file:
            file.seek(-4000, os.SEEK_END)
            file.write(np.ones(500, np.float32).tobytes())
    if change == "a damaged partial file":
        with open(tmp_path / ".out.gguf.partial", "r+b") as file:
            file.seek(-6000, os.SEEK_END)
            file.write(b"\x55" * 3000)
    run(source, target, recipe)
    run(source, tmp_path / "at-once.gguf", recipe)
    assert target.read_bytes() == (tmp_path / "at-once.gguf").read_bytes()


def test_two_processes_do_not_write_the_same_file(tmp_path: Path) -> None:
    source, target = write(tmp_path), tmp_path / "out.gguf"

    def second(name: str, done: int, total: int) -> None:
        with pytest.raises(StoreError, match="another process is writing"):
            run(source, target)
        raise Stopped

    with pytest.raises(Stopped):
        run(source, target, progress=second)


def test_memory_stays_below_three_times_the_largest_tensor(tmp_path: Path) -> None:
    rows, columns = 1024, 1024
    raw = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32).view(np.uint8).reshape(-1)
    names = [f"blk.{layer}.ffn_up.weight" for layer in range(12)]
    tensors = [(name, (rows, columns), BlockType.F32, raw) for name in names]
    write_gguf(tmp_path / "float.gguf", replace(TINY, layers=12).metadata(), tensors)
    run(tmp_path / "float.gguf", tmp_path / "warm.gguf", "Q8_0")
    tracemalloc.start()
    try:
        run(tmp_path / "float.gguf", tmp_path / "out.gguf", "Q8_0")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * raw.nbytes


@pytest.mark.parametrize("model", MODELS[:4], ids=lambda model: model.name)
def test_progress_tells_bytes_of_the_plan(model: Tiny, tmp_path: Path) -> None:
    source, seen = write(tmp_path, model=model), []
    with GGUFFile.open(source) as file:
        weights = gguf_weights(file)
        made = plan(weights, "Q4_K_M")
        quantize(
            weights, tmp_path / "out.gguf", made, progress=lambda name, done, total: seen.append((name, done, total))
        )
    assert [name for name, _, _ in seen[:-1]] == [line.name for line in made.tensors]
    assert seen[0][1:] == (0, made.size_bytes)
    assert seen[-1][1:] == (made.size_bytes, made.size_bytes)
    assert (tmp_path / "out.gguf").stat().st_size >= made.size_bytes


@pytest.mark.parametrize("kind", [BlockType.F16, BlockType.BF16, BlockType.Q8_0], ids=lambda kind: kind.name)
def test_without_native_encoders_the_file_is_the_same(
    kind: BlockType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path, kind)
    weights = {"weights_of": lambda name: np.linspace(1, 30, 256).astype(np.float32), "allow_requantize": True}
    run(source, tmp_path / "native.gguf", **weights)
    monkeypatch.setattr("localllm.quantize.recode.is_built", lambda: False)
    monkeypatch.setattr("localllm.quantize.encode.is_built", lambda: False)
    run(source, tmp_path / "numpy.gguf", **weights)
    assert (tmp_path / "native.gguf").read_bytes() == (tmp_path / "numpy.gguf").read_bytes()
