"""A model to a quantized file: from safetensors or GGUF, whole or not at all, with a true receipt."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localllm import LLM
from localllm.backends.cpu.library import native_problem
from localllm.errors import BadModelFile, LocalLLMError, ModelNotFound, UnsupportedModel, UsageError
from localllm.formats.blocks import decode
from localllm.formats.gguf_metadata import ValueType
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.gguf_write import write_gguf
from localllm.quantize.receipt import Measured, Receipt, in_metadata
from localllm.runtime.convert import convert_model, open_weights
from localllm.runtime.quantize import Order, keep_in_file, plan_of, quantize_model, seconds_of, sizes_of, way_of
from localllm.store.entry import Entry
from localllm.store.library import Library
from localllm.store.modelfile import parse_modelfile
from tests.road.tiny_llama import make_tiny_llama
from tests.store.worlds import library_of

PROMPT = "Redistribution and use in source"
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", **WIDE)


@pytest.fixture(scope="module")
def floats(folder: Path) -> Path:
    """The same as one GGUF file."""
    path = folder.parent / "tiny.gguf"
    convert_model(folder, path, None)
    return path


@pytest.fixture(scope="module")
def mixed(folder: Path) -> tuple[Path, Receipt]:
    path = folder.parent / "tiny-q4_k_m.gguf"
    return path, quantize_model(folder, path, Order("q4_k_m"), name="mine:tiny", digest="ab12")


def test_safetensors_and_their_gguf_become_the_same_tensors(
    folder: Path, floats: Path, mixed: tuple[Path, Receipt], tmp_path: Path
) -> None:
    quantize_model(floats, tmp_path / "b.gguf", Order("Q4_K_M"))
    with GGUFFile.open(mixed[0]) as one, GGUFFile.open(tmp_path / "b.gguf") as other:
        assert list(one.tensors) == list(other.tensors) and len(one.tensors) == 21
        for name, tensor in one.tensors.items():
            assert tensor.type == other.tensors[name].type and np.array_equal(one.raw(name), other.raw(name)), name
        assert one.metadata["general.file_type"] == 15
        assert one.metadata["tokenizer.chat_template"] == other.metadata["tokenizer.chat_template"]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_receipt_in_the_file_is_the_one_that_is_handed_out(mixed: tuple[Path, Receipt]) -> None:
    path, receipt = mixed
    assert (receipt.recipe, receipt.method, receipt.source, receipt.source_digest) == (
        "Q4_K_M",
        "rtn",
        "mine:tiny",
        "ab12",
    )
    with GGUFFile.open(path) as file:
        found = in_metadata(dict(file.metadata), {name: each.type.name for name, each in file.tensors.items()})
        assert found is not None
        assert found.error == pytest.approx(receipt.error, rel=1e-6) and len(found.layers) == 2
        assert found.layers == pytest.approx(receipt.layers, rel=1e-6)
        assert [each.name for each in found.worst] == [each.name for each in receipt.worst]
        assert found.recipe == receipt.recipe and found.version == receipt.version
        assert found.bits_per_weight == pytest.approx(8 * sum(each.size_bytes for each in file.tensors.values()) / sum(
            np.prod(each.shape) for each in file.tensors.values()
        ))  # fmt: skip


def test_errors_of_the_receipt_are_those_of_the_weights(folder: Path, mixed: tuple[Path, Receipt]) -> None:
    path, receipt = mixed
    lost = total = 0.0
    with open_weights(folder) as before, GGUFFile.open(path) as file:
        for weight in before.tensors:
            tensor = file.tensors[weight.name]
            if tensor.type is weight.type:
                continue
            old = decode(weight.type, weight.raw(), weight.shape)
            new = decode(tensor.type, file.raw(weight.name), tensor.shape)
            lost, total = lost + float(np.square(old - new).sum()), total + float(np.square(old).sum())
    assert receipt.error == pytest.approx((lost / total) ** 0.5, rel=1e-5) and 0.01 < receipt.error < 0.2
    worst = receipt.worst[0]
    assert worst.error >= max(receipt.layers) >= receipt.error > 0 and worst.type == "Q4_K"


def test_a_file_of_one_s_own_tells_no_path(folder: Path, tmp_path: Path) -> None:
    quantize_model(folder, tmp_path / "a.gguf", Order("q8_0"), name=str(folder))
    with GGUFFile.open(tmp_path / "a.gguf") as file:
        assert file.metadata["localllm.quantize.source"] == "tiny"
    assert str(folder).encode() not in (tmp_path / "a.gguf").read_bytes()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what hosts say of themselves
@pytest.mark.parametrize("backend", ["cpu", "torch", "metal"])
def test_every_host_answers_as_the_reference_does(mixed: tuple[Path, Receipt], backend: str) -> None:
    if backend == "cpu" and native_problem():
        pytest.skip("the native kernels have not been built")
    pytest.importorskip({"metal": "mlx.core", "torch": "torch", "cpu": "numpy"}[backend])
    answers = []
    for name in (backend, "reference"):
        with LLM(mixed[0], backend=name, threads=1, kv_pages=32, kv_type="f32") as llm:
            answers.append(llm.generate(PROMPT, max_tokens=8, temperature=0)[0].token_ids)
    assert answers[0] == answers[1]


def test_exceptions_and_pure_recipes_are_kept_to(floats: Path, tmp_path: Path) -> None:
    order = Order("q4_k_m", pure=True, keep=(r"blk\.0\.ffn_down=q8_0", "attn_v=f16"))
    quantize_model(floats, tmp_path / "a.gguf", order)
    with GGUFFile.open(tmp_path / "a.gguf") as file:
        kinds = {name: each.type.name for name, each in file.tensors.items() if len(each.shape) > 1}
        assert kinds["blk.0.ffn_down.weight"] == "Q8_0" and kinds["blk.1.attn_v.weight"] == "F16"
        assert kinds["output.weight"] == kinds["blk.1.ffn_down.weight"] == "Q4_K"
        assert file.metadata["localllm.quantize.keep"] == "\n".join(order.keep)


def in_two_parts(floats: Path, folder: Path) -> list[Path]:
    paths = [folder / f"tiny-{number:05d}-of-00002.gguf" for number in (1, 2)]
    with GGUFFile.open(floats) as file:
        tensors = [(each.name, each.shape, each.type, file.raw(each.name)) for each in file.tensors.values()]
        for number, part in enumerate((tensors[:9], tensors[9:])):
            keys = {"split.no": (ValueType.UINT16, number), "split.count": (ValueType.UINT16, 2)}
            metadata = dict(file.metadata.typed()) if number == 0 else {"general.architecture": "llama"}
            keys["split.tensors.count"] = (ValueType.INT32, len(tensors))
            write_gguf(paths[number], {**metadata, **keys}, part)
    return paths


@pytest.mark.parametrize("form", ["itself", "symlink", "hardlink", "part", "safetensors"])
def test_no_file_of_the_model_itself_is_replaced(floats: Path, folder: Path, tmp_path: Path, form: str) -> None:
    source = target = Path(shutil.copy(floats, tmp_path / "a.gguf"))
    if form == "symlink":
        (target := tmp_path / "b.gguf").symlink_to(source)
    elif form == "hardlink":
        (target := tmp_path / "b.gguf").hardlink_to(source)
    elif form == "part":
        source, target = in_two_parts(floats, tmp_path)
    elif form == "safetensors":
        source = Path(shutil.copytree(folder, tmp_path / "tiny"))
        target = source / "model.safetensors"
    before = target.read_bytes()
    with pytest.raises(UsageError, match=f"{target.name} is .*a file of the model itself"):
        quantize_model(source, target, Order("q4_0"), replaces=True)
    assert target.read_bytes() == before and not list(tmp_path.rglob(".*"))


def test_a_conversion_replaces_no_file_of_its_folder(folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(folder, tmp_path / "tiny"))
    for name in ("model.safetensors", "config.json"):
        before = (source / name).read_bytes()
        with pytest.raises(UsageError, match="a file of the model itself"):
            convert_model(source, source / name, None, replaces=True)
        assert (source / name).read_bytes() == before


def test_a_model_in_parts_becomes_one_file(floats: Path, mixed: tuple[Path, Receipt], tmp_path: Path) -> None:
    quantize_model(in_two_parts(floats, tmp_path)[0], tmp_path / "one.gguf", Order("q4_k_m"))
    with GGUFFile.open(tmp_path / "one.gguf") as made, GGUFFile.open(mixed[0]) as whole:
        assert not [key for key in made.metadata if key.startswith("split.")]
        assert all(np.array_equal(made.raw(name), whole.raw(name)) for name in whole.tensors)


def test_figures_are_kept_in_a_file_that_has_a_receipt(
    mixed: tuple[Path, Receipt], floats: Path, tmp_path: Path
) -> None:
    path, figures = tmp_path / "a.gguf", Measured(against="tiny", text="t", tokens=3, kl_mean=0.5, same_top=0.25)
    path.write_bytes(mixed[0].read_bytes())
    keep_in_file(path, figures)
    with GGUFFile.open(path) as after, GGUFFile.open(mixed[0]) as before:
        found = in_metadata(after.metadata, {name: each.type.name for name, each in after.tensors.items()})
        assert found is not None and found.measured == figures and found.layers == pytest.approx(mixed[1].layers)
        assert all(np.array_equal(after.raw(name), before.raw(name)) for name in before.tensors)
    with pytest.raises(UsageError, match="was not quantized"):
        keep_in_file(floats, figures)


def test_sizes_are_known_before_and_what_is_in_blocks_is_left_alone(
    floats: Path, mixed: tuple[Path, Receipt], tmp_path: Path
) -> None:
    plan = plan_of(floats, Order("q4_k_m"))
    with GGUFFile.open(mixed[0]) as file:
        assert sum(each.size_bytes for each in file.tensors.values()) == plan.size_bytes
    assert 0 < seconds_of(plan) < 60
    sizes = sizes_of(floats)
    assert [size for _, size, _ in sizes] == sorted((size for _, size, _ in sizes), reverse=True)
    assert ("Q4_K_M", plan.size_bytes, plan.bits_per_weight) in sizes and "F32" not in {name for name, *_ in sizes}
    with pytest.raises(UsageError, match="quantized already"):
        sizes_of(mixed[0])
    with pytest.raises(UsageError, match="second time"):
        quantize_model(mixed[0], tmp_path / "again.gguf", Order("q4_0"))
    assert not list(tmp_path.iterdir())


# ---- in the store


def test_a_model_of_the_store_keeps_what_belongs_to_it(folder: Path, tmp_path: Path) -> None:
    library = library_of(tmp_path)
    template = "TEMPLATE {{ 'a' }}{% if 1 %}{% endif %}"
    text = f"FROM {folder}\nSYSTEM be brief\nPARAMETER temperature 0\nLICENSE MIT\n{template}"
    base = library.create("base", parse_modelfile(text.encode()))
    said: list[Any] = []
    made = library.quantize("base", "small:q4", way_of(Order("q4_0")), said.append)
    assert made == library.find("small:q4") and made.quantization == "Q4_0" and made.parent == "base:latest"
    assert (made.system, made.params, made.license, made.template) == (base.system, base.params, "MIT", base.template)
    assert (
        made.receipt is not None and made.receipt.source == "base:latest" and made.receipt.source_digest == base.digest
    )
    assert [each.is_good for each in library.verify("small:q4")] == [True] and made.size_bytes < base.size_bytes
    (record,) = made.files
    assert record.is_ours and Path(record.path).is_relative_to(tmp_path)
    assert any(each.message == "quantizing F32 model to Q4_0" for each in said)
    again = library.quantize("base", "other", way_of(Order("q4_0")))  # nothing is rounded twice
    assert again.path == made.path and again.digest == made.digest
    library.remove("small:q4")
    assert Path(made.path).exists()
    library.remove("other")
    assert not Path(made.path).parent.exists() and [entry.name for entry in library.entries()] == ["base:latest"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_modelfile_s_model_can_be_quantized_on_its_way(folder: Path, tmp_path: Path) -> None:
    library = library_of(tmp_path)
    made = library.create("made", parse_modelfile(f"FROM {folder}".encode()), way=way_of(Order("q8_0")))
    assert made.quantization == "Q8_0" and made.receipt is not None and made.receipt.source == "tiny"
    with LLM(made.path, backend="reference", kv_pages=32) as llm:
        assert llm.generate(PROMPT, max_tokens=2, temperature=0)[0].token_ids


def test_a_receipt_changes_no_digest_and_takes_figures(folder: Path, tmp_path: Path) -> None:
    library = library_of(tmp_path)
    made = library.quantize(str(folder), "small", way_of(Order("q8_0")))
    kept = library.keep_measured("small", Measured(against="tiny", kl_mean=0.01, tokens=5))
    assert kept.digest == made.digest and kept.receipt is not None and kept.receipt.measured is not None
    assert library.find("small").receipt == kept.receipt
    library.create("plain", parse_modelfile(f"FROM {folder}".encode()))
    with pytest.raises(UsageError, match="was not quantized here"):
        library.keep_measured("plain", Measured())


# ---- faults


ZYGOTE = """
import multiprocessing, random, sys
from pathlib import Path
from localllm.runtime.quantize import Order, quantize_model
source, target, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
chance, fork = random.Random(int(sys.argv[4])), multiprocessing.get_context("fork")
killed = finished = 0
longest = 0.4
while killed < kills:
    run = fork.Process(target=quantize_model, args=(source, target, Order("q4_k_m")))
    run.start()
    run.join(longest * chance.random())
    if run.is_alive():
        run.kill()
        run.join()
        killed += 1
        if target.exists():  # the kill came after the name
            target.unlink()
    else:
        finished += 1
        longest *= 0.7
        target.unlink()
    assert not [path for path in target.parent.iterdir() if not path.name.startswith(".")], "something has a name"
print(killed, finished)
"""


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_runs_that_are_killed_leave_nothing_with_a_name_and_are_gone_on_with(
    floats: Path, mixed: tuple[Path, Receipt], tmp_path: Path
) -> None:
    target = tmp_path / "made.gguf"
    done = python(ZYGOTE, floats, target, 20, 7)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "20"
    quantize_model(floats, target, Order("q4_k_m"))
    with GGUFFile.open(target) as made, GGUFFile.open(mixed[0]) as undisturbed:
        for name in undisturbed.tensors:
            assert np.array_equal(made.raw(name), undisturbed.raw(name)), name
    assert [path.name for path in tmp_path.iterdir()] == ["made.gguf"]


def test_a_run_that_stopped_says_where_it_goes_on(floats: Path, tmp_path: Path) -> None:
    target = tmp_path / "made.gguf"
    stop_at = 12

    def stop(name: str, done: int, total: int) -> None:
        nonlocal stop_at
        stop_at -= 1
        if not stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_model(floats, target, Order("q8_0"), progress=stop)
    said: list[Any] = []
    assert not target.exists()
    quantize_model(floats, target, Order("q8_0"), progress=lambda *event: said.append(event))
    assert said[0][0] == "going on from tensor 12 of 21" and said[0][1] > 0
    said.clear()
    quantize_model(floats, tmp_path / "other.gguf", Order("q8_0"), progress=lambda *event: said.append(event))
    assert "going on" not in said[0][0]
    assert target.read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_half_a_run_of_another_recipe_is_not_gone_on_with(floats: Path, tmp_path: Path) -> None:
    target = tmp_path / "made.gguf"

    def stop(name: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_model(floats, target, Order("q8_0"), progress=stop)
    said: list[Any] = []
    quantize_model(floats, target, Order("q5_0"), progress=lambda *event: said.append(event[0]))
    assert not any("going on" in each for each in said)
    with GGUFFile.open(target) as file:
        assert file.tensors["blk.0.ffn_up.weight"].type.name == "Q5_0"


LIMITED = """
import resource, sys
from pathlib import Path
from localllm.errors import LocalLLMError
from localllm.runtime.quantize import Order, quantize_model
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    quantize_model(Path(sys.argv[1]), Path(sys.argv[2]), Order("q8_0"))
except LocalLLMError as error:
    print(type(error).__name__, error.message)
"""


@pytest.mark.parametrize("limit", [0, 200_000])
def test_a_file_that_may_not_grow_is_a_sentence_and_no_model(floats: Path, tmp_path: Path, limit: int) -> None:
    done = python(LIMITED, floats, tmp_path / "made.gguf", limit)
    assert done.stdout.startswith(("DiskFull", "StoreError")), (done.stdout, done.stderr[-500:])
    assert "made.gguf" in done.stdout and not [path for path in tmp_path.iterdir() if path.suffix == ".gguf"]


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("tensor", ["blk.1.ffn_up.weight", "output_norm.weight"])
def test_numbers_that_are_none_end_it_with_the_tensor_s_name(
    floats: Path, tmp_path: Path, value: float, tensor: str
) -> None:
    bad = tmp_path / "bad.gguf"
    content = bytearray(floats.read_bytes())
    with GGUFFile.open(floats) as file:
        at = file.tensors[tensor].offset + 40
    content[at : at + 4] = np.float32(value).tobytes()
    bad.write_bytes(content)
    with pytest.raises(BadModelFile, match=tensor):
        quantize_model(bad, tmp_path / "made.gguf", Order("q4_0"))
    assert [path.name for path in tmp_path.iterdir()] == ["bad.gguf"]


def test_damaged_models_are_refused_before_anything_is_written(folder: Path, floats: Path, tmp_path: Path) -> None:
    whole = floats.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none.gguf").write_bytes(b"GGUF" + bytes(40))
    (tmp_path / "twice").mkdir()
    for path in folder.iterdir():
        (tmp_path / "twice" / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "twice" / "config.json").write_text(json.dumps({**config, "num_attention_heads": 7}))
    for source in ("cut.gguf", "none.gguf", "twice", "missing.gguf"):
        with pytest.raises((BadModelFile, ModelNotFound, UnsupportedModel)):
            quantize_model(tmp_path / source, tmp_path / "made.gguf", Order("q4_0"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf", "none.gguf", "twice"]


def test_what_a_killed_run_left_in_the_store_is_no_model(folder: Path, tmp_path: Path) -> None:
    library: Library = library_of(tmp_path)

    def stop(event: Any) -> None:
        if event.kind == "progress" and event.completed_bytes > event.total_bytes // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.quantize(str(folder), "small", way_of(Order("q8_0")), stop)
    assert library.entries() == [] and library.damaged() == []
    left = [path.name for path in (tmp_path / "store" / "files").rglob("*") if path.is_file()]
    assert sorted(left) == [".tiny-Q8_0.gguf.journal", ".tiny-Q8_0.gguf.partial"]
    said: list[Any] = []
    made: Entry = library.quantize(str(folder), "small", way_of(Order("q8_0")), said.append)
    assert any(each.message.startswith("going on from tensor") and each.resumed_bytes for each in said)
    assert sorted(path.name for path in Path(made.path).parent.iterdir()) == [Path(made.path).name]


def test_every_error_has_a_next_step(floats: Path, tmp_path: Path) -> None:
    for order in (Order("q9"), Order("q4_0", keep=("nothing=q8_0",)), Order("q4_0", keep=("(=q8_0",))):
        with pytest.raises(LocalLLMError) as refused:
            quantize_model(floats, tmp_path / "made.gguf", order.checked())
        assert refused.value.message and "\n" not in refused.value.message
    assert not list(tmp_path.iterdir()) and resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0
