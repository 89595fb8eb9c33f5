"""Checkpoints that are quantized already: values, block types, notes, logits, and what is refused."""

import copy
import tracemalloc
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from localllm.engine.step import Want
from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.blocks import BlockType, decode
from localllm.formats.safetensors import SafetensorsFolder
from localllm.models.mapping import hf_model
from localllm.models.ready.bits import awq_unpacked, e4m3_table, unpacked
from localllm.models.ready.folder import ReadyFolder, notes_of, ready_folder
from localllm.models.ready.grids import Grid
from localllm.models.ready.methods import Method, method_of
from tests.contract.conftest import HOSTS, Host
from tests.contract.test_families import difference
from tests.contract.walk import Walk
from tests.oracles.hf import BY_NAME as FAMILIES
from tests.oracles.hf import as_folder, expected_logits, make_model, torch_and_transformers
from tests.oracles.ready import BY_NAME, PACKERS, Packer, compressed, gptq, quantized_folder, tensor, words

PROMPT = np.random.default_rng(1).integers(3, 80, 12).tolist()
ROUNDED = 2.0**-11


@dataclass
class Made:
    packer: Packer
    path: Path
    values: dict[str, NDArray[Any]]
    model: Any


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model, path = make_model(FAMILIES["llama"]), tmp_path_factory.mktemp("plain")
    as_folder(model, path).close()
    return model, path


@pytest.fixture(scope="module", params=PACKERS, ids=lambda packer: packer.name)
def made(request: pytest.FixtureRequest, plain: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    path = tmp_path_factory.mktemp("ready")
    return Made(request.param, path, quantized_folder(plain[1], path, request.param), plain[0])


def opened(path: Path) -> ReadyFolder:
    folder = ready_folder(SafetensorsFolder.open(path))
    assert isinstance(folder, ReadyFolder)
    return folder


def test_values_are_those_of_the_formats_own_arithmetic(made: Made) -> None:
    folder, notes = opened(made.path), 0
    assert folder.tensors.keys() == made.values.keys()
    for name, expected in made.values.items():
        dtype, found = folder.tensors[name].dtype, folder.as_float32(name)
        assert folder.tensors[name].shape == expected.shape
        is_exact = dtype.startswith("Q") and made.packer.name != "bitsandbytes int8"
        allowed = 1e-7 if is_exact or dtype == "F32" else ROUNDED
        assert np.abs(found - expected).max() <= allowed * np.abs(expected).max(), (name, dtype)
        if "_proj" in name:
            assert dtype == (made.packer.kind or "F16")
            notes += not is_exact
    said = notes_of(folder)
    assert bool(said) == bool(notes)
    assert all(made.packer.title in note for note in said)


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_a_tiny_model_gives_the_logits_of_its_dequantized_weights(made: Made, host: Host) -> None:
    if problem := host.problem():
        pytest.skip(problem)
    folder = opened(made.path)
    config, source = hf_model(folder)
    backend = host.open(config, source, "f32")
    (result,) = Walk(backend).step((1, PROMPT, Want(logits="all")))
    assert result.logits is not None
    backend.close()
    allowed = 1e-4 if host.name == "reference" else host.quantized
    assert difference([result.logits], logits_of(made, made.values)) <= max(allowed, 1e-3 * bool(notes_of(folder)))
    if host.name == "reference":  # and without what reading has rounded
        read = {name: folder.as_float32(name) for name in made.values}
        assert difference([result.logits], logits_of(made, read)) <= 1e-4


def logits_of(made: Made, values: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    torch, _ = torch_and_transformers()
    model = copy.deepcopy(made.model)
    model.load_state_dict({name: torch.from_numpy(value).float() for name, value in values.items()})
    return expected_logits(model, PROMPT)


# ---- packing, in all shapes


class MemoryFolder:
    """What SafetensorsFolder offers, over tensors of torch."""

    def __init__(self, config: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
        self.config, self.parts = config, {name: tensor(part) for name, part in parts.items()}
        self.released: list[str] = []

    @property
    def tensors(self) -> dict[str, Any]:
        return {name: Info(tuple(part.shape), DTYPES[str(part.dtype)[6:]]) for name, part in self.parts.items()}

    def array(self, name: str) -> NDArray[Any]:
        part = self.parts[name]
        kind = {"BF16": "uint16", "F8_E4M3": "uint8", "F8_E8M0": "uint8"}.get(self.tensors[name].dtype)
        plain = part if kind is None else part.view(getattr(torch_and_transformers()[0], kind))
        return np.asarray(plain.numpy())

    def as_float32(self, name: str) -> NDArray[np.float32]:
        return np.asarray(self.parts[name].float().numpy(), np.float32)

    def release(self, name: str) -> None:
        self.released.append(name)


class Info(NamedTuple):
    shape: tuple[int, ...]
    dtype: str


DTYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint8": "U8",
    "int8": "I8",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
}


def module(packer: Packer, weight: NDArray[Any], **changes: Any) -> tuple[MemoryFolder, NDArray[Any]]:
    """One linear layer `m`; `changes` by ending stand in for parts, or are None for parts that are left out."""
    parts, values = packer.make(weight, np.random.default_rng(3))
    parts = {name: part for name, part in {**parts, **changes}.items() if part is not None}
    return MemoryFolder(packer.config, {f"m{name}": part for name, part in parts.items()}), values


def matrix(rows: int, columns: int, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(size=(rows, columns)) * 0.1


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([name for name in BY_NAME if "one group" not in name and "in blocks" not in name]),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_every_method_reads_every_shape(name: str, rows: int, groups: int, seed: int) -> None:
    packer = BY_NAME[name]
    folder, expected = module(packer, matrix(rows * 32, groups * 64, seed))
    ready = ready_folder(folder)
    assert set(ready.tensors) == {"m.weight"} and ready.tensors["m.weight"].shape == expected.shape
    found = ready.as_float32("m.weight")
    assert np.abs(found - expected).max() <= ROUNDED * np.abs(expected).max()
    ready.release("m.weight")
    assert folder.released


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([8, 32, 48, 64, 100, 128, 192]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_all_bits_and_groups_are_read_exactly_where_blocks_are_whole(
    bits: int, group: int, symmetric: bool, shuffled: bool, seed: int
) -> None:
    """The last group may be short; what is not exact is rounded to float16. Two packings of one grid agree."""
    make = gptq(bits, group, symmetric, shuffled=shuffled)
    parts, expected = make(matrix(32, 192, seed), np.random.default_rng(seed))
    said = {"quant_method": "gptq", "bits": bits, "group_size": group}
    ready = ready_folder(MemoryFolder({"quantization_config": said}, {f"m{end}": part for end, part in parts.items()}))
    is_exact = ready.tensors["m.weight"].dtype != "F16"
    scattered = group % 32 != 0 or (shuffled and group < 192)
    assert is_exact == (not scattered and (bits < 8 or symmetric))
    allowed = 1e-7 if is_exact else ROUNDED
    assert np.abs(ready.as_float32("m.weight") - expected).max() <= allowed * np.abs(expected).max()
    if 192 % group == 0 and not shuffled:
        parts, meant = compressed(bits, group, symmetric)(matrix(32, 192, seed), np.random.default_rng(seed))
        groups = {"config_groups": {"a": {"weights": {"num_bits": bits}}}}
        config = {"quantization_config": {"quant_method": "compressed-tensors", **groups}}
        other = ready_folder(MemoryFolder(config, {f"m{end}": part for end, part in parts.items()}))
        assert np.array_equal(meant, expected)
        assert np.array_equal(other.as_float32("m.weight"), ready.as_float32("m.weight"))


@given(st.sampled_from([2, 3, 4, 5, 6, 8]), st.integers(1, 4), st.integers(1, 5), st.data())
def test_codes_come_out_of_words_as_they_went_in(bits: int, rows: int, blocks: int, data: st.DataObject) -> None:
    row = st.lists(st.integers(0, 2**bits - 1), min_size=32 * blocks, max_size=32 * blocks)
    codes = np.array(data.draw(st.lists(row, min_size=rows, max_size=rows)))
    assert np.array_equal(unpacked(words(codes, bits), bits), codes)


def test_a_word_of_awq_has_its_columns_in_the_order_of_the_gemm_kernel() -> None:
    word = np.array([[0x75316420]], np.uint32).view(np.int32)  # lowest nibble first: 0 2 4 6 1 3 5 7
    assert awq_unpacked(word)[:, 0].tolist() == list(range(8))


@pytest.mark.parametrize("scale", ["float32", "bfloat16", "float8_e8m0fnu"])
def test_8_bit_floats_in_blocks_are_what_transformers_makes_of_them(scale: str) -> None:
    torch, _ = torch_and_transformers()
    theirs = pytest.importorskip("transformers.integrations.finegrained_fp8").Fp8Dequantize(None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight = (torch.randn(64, 96) * 3).to(torch.float8_e4m3fn)
        scales = (torch.rand(2, 3) * 0.1 + 0.01).to(getattr(torch, scale))
    said = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    parts = {"m.weight": weight, "m.weight_scale_inv": scales}
    found = ready_folder(MemoryFolder({"quantization_config": said}, parts)).as_float32("m.weight")
    expected = theirs._dequantize_one(weight, scales, torch.float32).numpy()
    assert np.abs(found - expected).max() <= (0 if "e8m0" in scale else ROUNDED) * np.abs(expected).max()


def test_8_bit_floats_are_those_of_torch() -> None:
    torch, _ = torch_and_transformers()
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(e4m3_table(), theirs, equal_nan=True)


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (4, 128), (8, 64), (2, 64), (3, 32), (5, 32), (6, 64)])
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_mlx_weights_are_those_that_mlx_itself_quantizes_and_dequantizes(bits: int, group: int, kind: str) -> None:
    mx = pytest.importorskip("mlx.core")
    torch, _ = torch_and_transformers()
    with mx.stream(mx.cpu):
        packed, scales, biases = mx.quantize(mx.array(matrix(8, 256)).astype(getattr(mx, kind)), group, bits)
        # in float32: what the numbers of the file mean, not what the type of the activations makes of them
        wide = (scales.astype(mx.float32), biases.astype(mx.float32))
        theirs = np.array(mx.dequantize(packed, *wide, group, bits))
        kept = [torch.from_numpy(np.array(each)).to(getattr(torch, kind)) for each in wide]
    parts = {"m.weight": np.array(packed), "m.scales": kept[0], "m.biases": kept[1]}
    ready = ready_folder(MemoryFolder({"quantization": {"bits": bits, "group_size": group}}, parts))
    exact = bits < 6 and kind != "float32"
    assert ready.tensors["m.weight"].dtype == ("F16" if bits > 5 else "Q5_1" if bits == 5 else "Q4_1")
    assert (
        np.abs(ready.as_float32("m.weight") - theirs).max() <= (1e-7 if exact else 2 * ROUNDED) * np.abs(theirs).max()
    )


def test_mlx_keeps_some_matrices_with_other_bits_or_unquantized() -> None:
    four, _ = BY_NAME["mlx, 4 bits, groups of 32, bfloat16"].make(matrix(8, 64), np.random.default_rng(0))
    eight, values = BY_NAME["mlx, 8 bits, groups of 32, bfloat16"].make(matrix(8, 64), np.random.default_rng(0))
    parts = {f"a{name}": part for name, part in four.items()} | {f"b{name}": part for name, part in eight.items()}
    parts["c.weight"] = np.ones((2, 2), np.float32)
    said = {"bits": 4, "group_size": 32, "b": {"bits": 8, "group_size": 32}, "c": False}
    ready = ready_folder(MemoryFolder({"quantization": said}, parts))
    assert {name: info.dtype for name, info in ready.tensors.items()} == {
        "a.weight": "Q4_1",
        "b.weight": "F16",
        "c.weight": "F32",
    }
    assert np.allclose(ready.as_float32("b.weight"), values, atol=1e-3)


def test_stacked_experts_of_mlx_are_matrices_one_after_another() -> None:
    packer = BY_NAME["mlx, 4 bits, groups of 32, float16"]
    made = [packer.make(matrix(8, 64, seed), np.random.default_rng(0)) for seed in range(3)]
    torch, _ = torch_and_transformers()
    parts = {f"m{end}": torch.stack([tensor(part[end]) for part, _ in made]) for end in made[0][0]}
    ready = ready_folder(MemoryFolder(packer.config, parts))
    assert np.allclose(ready.as_float32("m.weight"), np.stack([values for _, values in made]), atol=1e-7)


def test_experts_of_one_layer_take_the_type_that_holds_all_of_them() -> None:
    even, odd = gptq(4, 32, True), gptq(4, 32, False)
    parts: dict[str, Any] = {}
    values = []
    for number, make in enumerate((even, odd)):
        some, meant = make(matrix(16, 64), np.random.default_rng(0))
        parts |= {f"layers.0.mlp.experts.{number}.up_proj{end}": part for end, part in some.items()}
        values.append(meant)
    ready = ready_folder(MemoryFolder(BY_NAME["gptq"].config, parts))
    assert {info.dtype for info in ready.tensors.values()} == {"Q5_0"}
    for number, expected in enumerate(values):
        found = ready.as_float32(f"layers.0.mlp.experts.{number}.up_proj.weight")
        assert np.abs(found - expected).max() <= 1e-7


def test_without_g_idx_groups_are_neighbours() -> None:
    folder, expected = module(BY_NAME["gptq"], matrix(32, 64), **{".g_idx": None})
    assert np.allclose(ready_folder(folder).as_float32("m.weight"), expected, atol=1e-7)


def test_the_largest_negative_step_of_8_bits_is_kept() -> None:
    grid = Grid(np.ones((1, 1), np.float32), np.zeros(32, int), np.zeros((1, 1), np.int16), None, -128, 127)
    codes = np.full((1, 32), -128, np.int8)
    assert grid.plan().type is BlockType.Q8_0
    assert (decode(BlockType.Q8_0, grid.blocks(codes, BlockType.Q8_0), (1, 32)) == -128).all()


def test_zeros_that_quantizers_add_as_biases_are_left_out_and_others_are_not() -> None:
    folder, _ = module(BY_NAME["gptq"], matrix(32, 64), **{".bias": np.zeros(32, np.float16)})
    assert set(ready_folder(folder).tensors) == {"m.weight"}
    folder, _ = module(BY_NAME["gptq"], matrix(32, 64), **{".bias": np.ones(32, np.float16)})
    assert set(ready_folder(folder).tensors) == {"m.weight", "m.bias"}


def test_one_matrix_at_a_time_is_unpacked_and_none_is_kept() -> None:
    one = matrix(256, 256)
    parts: dict[str, Any] = {}
    for number in range(24):
        some, _ = BY_NAME["compressed-tensors, int8"].make(one, np.random.default_rng(0))
        parts |= {f"m{number}{ending}": part for ending, part in some.items()}
    ready = ready_folder(MemoryFolder(BY_NAME["compressed-tensors, int8"].config, parts))
    assert {info.dtype for info in ready.tensors.values()} == {"Q8_0"}
    tracemalloc.start()
    try:
        for name in ready.tensors:
            ready.array(name)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 12 * one.size < 24 * one.size  # bytes; less than an 8-bit copy of all


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("gptq", {".scales": None}, "lacks the tensor m.scales"),
        ("gptq", {".qzeros": None}, "lacks the tensor m.qzeros"),
        ("gptq", {".scales": np.ones((3, 32), np.float16)}, "qzeros has the shape"),
        ("gptq", {".scales": np.ones((2, 31), np.float16)}, "do not fit together"),
        ("gptq", {".scales": np.ones((0, 32), np.float16)}, "no matrix of weights"),
        ("gptq", {".scales": np.ones((2, 32), np.int8)}, "which no scales have"),
        ("gptq", {".scales": np.full((2, 32), np.nan, np.float16)}, "no finite numbers"),
        ("gptq", {".qweight": np.ones((8, 32), np.float32)}, "has the type F32"),
        ("gptq", {".g_idx": np.full(64, 2, np.int32)}, "a group that is not there"),
        ("gptq", {".g_idx": np.full(64, -1, np.int32)}, "a group that is not there"),
        ("gptq", {".g_idx": np.zeros(63, np.int32)}, "must have"),
        ("gptq, one group", {".g_idx": None, ".scales": np.ones((2, 32), np.float16)}, "must have|groups"),
        ("awq", {".qzeros": np.zeros((2, 3), np.int32)}, "must have"),
        ("awq", {".scales": np.ones((1, 32), np.float16), ".qzeros": np.zeros((1, 4), np.int32)}, "has 1 groups"),
        ("fp8 in blocks", {".weight_scale_inv": np.ones((2, 2), np.float32)}, "must have"),
        ("fp8, one scale", {".weight_scale": np.ones((4, 4), np.float32)}, "no weight_block_size"),
        ("fp8, one scale", {".weight": None}, "lacks the tensor m.weight"),
        ("fp8, one scale", {".weight": np.ones((32, 64), np.float32)}, "has the type F32"),
        ("compressed-tensors", {".weight_scale": None}, "lacks the tensor m.weight_scale"),
        ("compressed-tensors", {".weight_shape": np.array([32, 65])}, "weight_shape says"),
        ("compressed-tensors", {".weight_scale": np.ones((32, 65), np.float16)}, "65 groups for 64"),
        ("compressed-tensors", {".weight_g_idx": np.full(64, 9, np.int32)}, "a group that is not there"),
        ("compressed-tensors, int8", {".weight_scale": np.ones((31, 1), np.float16)}, "has scales of the shape"),
        ("bitsandbytes int8", {".SCB": np.ones(31, np.float32)}, "has scales of the shape"),
        ("nf4", {".weight.quant_map": None}, "lacks the tensor m.weight.quant_map"),
        ("nf4", {".weight.quant_state.bitsandbytes__nf4": None}, "lacks the tensor"),
        ("nf4", {".weight.quant_state.bitsandbytes__nf4": np.zeros(9, np.uint8)}, "no JSON object"),
        ("nf4", {".weight.absmax": np.ones(5, np.float32)}, "do not make the shape"),
        ("nf4, nested", {".weight.nested_absmax": np.ones(9, np.float32)}, "must have"),
        ("mlx, 4 bits, groups of 32, float16", {".biases": None}, "lacks the tensor m.biases"),
        ("mlx, 4 bits, groups of 32, float16", {".scales": np.ones((32, 3), np.float16)}, "must have"),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence(name: str, changes: dict[str, Any], says: str) -> None:
    folder, _ = module(BY_NAME[name], matrix(32, 96 if "one group" in name else 64), **changes)
    with pytest.raises(BadModelFile, match=says):
        ready_folder(folder).as_float32("m.weight")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(BY_NAME)), st.data())
def test_a_part_that_is_anything_is_read_or_refused_by_name(name: str, data: st.DataObject) -> None:
    parts, _ = BY_NAME[name].make(matrix(32, 192), np.random.default_rng(0))
    ending = data.draw(st.sampled_from(sorted(parts)))
    kind = data.draw(st.sampled_from(["int8", "uint8", "int32", "int64", "float16", "float32"]))
    old = tuple(tensor(parts[ending]).shape)
    shape = data.draw(st.one_of(st.just(old), st.lists(st.integers(0, 70), max_size=3).map(tuple)))
    number = data.draw(st.sampled_from([0, 1, -1, 77, 100, 6e4, 3e38, float("inf"), float("nan")]))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        part = np.full(shape, number).astype(kind)
    folder = MemoryFolder(BY_NAME[name].config, {f"m{each}": part if each == ending else parts[each] for each in parts})
    try:
        ready = ready_folder(folder)
        found = ready.as_float32("m.weight") if "m.weight" in ready.tensors else np.zeros(0)
    except (BadModelFile, UnsupportedModel) as error:
        assert "m." in error.message or "m has" in error.message or "m:" in error.message or "matrix" in error.message
    else:
        assert np.isfinite(found).all()


def test_8_bit_floats_that_are_no_numbers_are_refused() -> None:
    torch, _ = torch_and_transformers()
    nans = torch.full((32, 64), float("nan")).to(torch.float8_e4m3fn)
    folder, _ = module(BY_NAME["fp8, one scale"], matrix(32, 64), **{".weight": nans})
    with pytest.raises(BadModelFile, match="values that are no numbers"):
        ready_folder(folder).array("m.weight")


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"quantization_config": {"quant_method": "aqlm"}}, "AQLM"),
        ({"quantization_config": {"quant_method": "hqq"}}, "HQQ"),
        ({"quantization_config": {"quant_method": "exl2"}}, "EXL2"),
        ({"quantization_config": {"quant_method": "exl3"}}, "EXL3"),
        ({"quantization_config": {"quant_method": "torchao"}}, "torchao"),
        ({"quantization_config": {"bits": 4}}, "None"),
        ({"quantization_config": {"quant_method": "gptq", "checkpoint_format": "marlin"}}, "marlin"),
        ({"quantization_config": {"quant_method": "awq", "version": "GEMV"}}, "gemv"),
        ({"quantization_config": {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}}, "nvfp4"),
        ({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, "mxfp4"),
    ],
)
def test_a_method_that_is_not_read_is_named(said: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"(?i){says}"):
        method_of(said)


def test_quantized_weights_that_config_says_nothing_of_are_refused() -> None:
    folder, _ = module(BY_NAME["gptq"], matrix(32, 64))
    folder.config = {}
    with pytest.raises(UnsupportedModel, match="does not say how"):
        ready_folder(folder)


@pytest.mark.parametrize(
    "said",
    [
        {"quant_method": "gptq", "bits": "four"},
        {"quant_method": "gptq", "group_size": -7},
        {"quant_method": "awq", "bits": 3},
        {"bits": 99, "group_size": 64},
    ],
)
def test_numbers_that_make_no_sense_are_refused(said: dict[str, Any]) -> None:
    with pytest.raises(BadModelFile, match="must be between"):
        method_of({"quantization_config": said})


def test_plain_weights_are_left_as_they_are(plain: tuple[Any, Path]) -> None:
    folder = SafetensorsFolder.open(plain[1])
    assert ready_folder(folder) is folder and notes_of(folder) == () and method_of(folder.config) == Method()
    assert method_of({"text_config": {"quantization_config": {"quant_method": "awq"}}}).title == "AWQ 4-bit"
