"""Adapters from files: both forms give the same matrices, and what is no plain LoRA of the model is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localllm import LLM
from localllm.errors import BadModelFile, LocalLLMError, ModelNotFound, UnsupportedModel
from localllm.formats.blocks import BlockType
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.gguf_write import write_gguf
from localllm.models.adapters import Adapter, InfoOf
from localllm.models.config import ModelConfig
from localllm.models.mapping import gguf_model, hf_model
from localllm.models.open_adapter import adapter_facts, is_adapter, open_adapter
from tests.oracles.hf import BY_NAME, as_folder, make_model
from tests.oracles.lora import as_gguf, make_adapter

PROMPT = [5, 6, 7]
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


class Base:
    """A tiny model and a PEFT adapter of it in a folder that a test may change."""

    def __init__(self, config: ModelConfig, info_of: InfoOf, folder: Path) -> None:
        self.config, self.info_of, self.folder = config, info_of, folder

    def open(self, path: Path | None = None) -> Adapter:
        return open_adapter(path or self.folder, self.config, self.info_of)

    def say(self, **fields: Any) -> None:
        """Into adapter_config.json."""
        path = self.folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    def hold(self, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
        """Instead of the adapter's tensors."""
        save = pytest.importorskip("safetensors.numpy").save_file
        save(tensors, self.folder / "adapter_model.safetensors")


def made(name: str, folder: Path, **settings: Any) -> Base:
    model = make_model(BY_NAME[name])
    config, source = hf_model(as_folder(model, folder / "model"))
    make_adapter(model, folder / "adapter", 1, PROMPT, **settings)
    return Base(config, source.info, folder / "adapter")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return made("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture
def base(saved: Base, tmp_path: Path) -> Base:
    return Base(saved.config, saved.info_of, Path(shutil.copytree(saved.folder, tmp_path / "adapter")))


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi4"])
def test_a_gguf_adapter_gives_the_matrices_of_the_one_that_it_was_made_of(name: str, tmp_path: Path) -> None:
    base = made(name, tmp_path)
    as_gguf(base.folder, tmp_path / "lora.gguf", base.config.architecture, (4, 2) if name == "llama" else (0, 0))
    ours, theirs = base.open(), base.open(tmp_path / "lora.gguf")
    assert ours.parts.keys() == theirs.parts.keys() and len(ours.parts) == 4 * 7
    for weight, part in ours.parts.items():
        other = theirs.parts[weight]
        assert part.scale == other.scale == 2.0
        assert np.array_equal(part.a, other.a) and np.array_equal(part.b, other.b)


def test_every_form_of_path_leads_to_the_adapter(base: Base, tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    as_gguf(base.folder, tmp_path / "only" / "lora.gguf", "llama", (4, 2))
    for path in (
        base.folder,
        base.folder / "adapter_model.safetensors",
        tmp_path / "only",
        tmp_path / "only/lora.gguf",
    ):
        assert is_adapter(path) and len(base.open(path).parts) == 28
    assert not is_adapter(tmp_path) and not is_adapter(tmp_path / "nothing")


def test_what_an_adapter_says_of_itself_can_be_shown(base: Base, tmp_path: Path) -> None:
    base.say(base_model_name_or_path="somebody/tiny-llama")
    facts = adapter_facts(base.folder)
    assert (facts.kind, facts.base, facts.ranks, facts.alpha) == ("peft", "somebody/tiny-llama", (4,), 8.0)
    assert set(facts.targets) == {
        *(f"self_attn.{part}_proj" for part in "qkvo"), *(f"mlp.{part}_proj" for part in ("gate", "up", "down"))
    }  # fmt: skip
    as_gguf(base.folder, tmp_path / "a.gguf", "llama", (4, 2), **{"general.base_model.0.repo_url": "https://x/y"})
    facts = adapter_facts(tmp_path / "a.gguf")
    assert (facts.kind, facts.base, facts.architecture, facts.ranks) == ("gguf", "https://x/y", "llama", (4,))
    assert "attn_q" in facts.targets and facts.num_matrices == 28


def test_ranks_and_alphas_by_pattern_scale_as_peft_scales(base: Base) -> None:
    base.say(alpha_pattern={"layers.1.mlp.up_proj": 2, r"layers\.\d+\.self_attn": 4}, use_rslora=True)
    parts = base.open().parts
    assert parts["blk.1.ffn_up.weight"].scale == 1.0
    assert parts["blk.0.ffn_up.weight"].scale == 4.0
    assert parts["blk.0.attn_q.weight"].scale == 4.0, "a pattern has to reach the end of the name"


REFUSED: dict[str, tuple[dict[str, Any], type[LocalLLMError], str]] = {
    "another kind": ({"peft_type": "IA3"}, UnsupportedModel, "IA3"),
    "no kind": ({"peft_type": None}, UnsupportedModel, "None"),
    "dora": ({"use_dora": True}, UnsupportedModel, "DoRA"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, UnsupportedModel, "modules_to_save"),
    "biases": ({"bias": "all"}, UnsupportedModel, "bias"),
    "biases of its own": ({"lora_bias": True}, UnsupportedModel, "lora_bias"),
    "parameters": ({"target_parameters": ["experts.up"]}, UnsupportedModel, "target_parameters"),
    "tokens": ({"trainable_token_indices": [1]}, UnsupportedModel, "trainable_token_indices"),
    "activation": ({"alora_invocation_tokens": [1]}, UnsupportedModel, "aLoRA"),
    "another base": ({"init_lora_weights": "pissa_niter_4"}, UnsupportedModel, "pissa"),
    "no alpha": ({"lora_alpha": None}, BadModelFile, "lora_alpha"),
    "alpha no number": ({"lora_alpha": True}, BadModelFile, "lora_alpha"),
    "alpha beyond all": ({"lora_alpha": 1e300}, BadModelFile, "scale"),
    "no rank": ({"r": "4"}, BadModelFile, "rank"),
    "another rank": ({"r": 8}, BadModelFile, "says 8"),
    "a rank of nothing": ({"r": 0}, BadModelFile, "rank"),
    "patterns that are none": ({"rank_pattern": [1]}, BadModelFile, "rank_pattern"),
    "a pattern that may take for ever": ({"rank_pattern": {"(a+)+b": 2}}, UnsupportedModel, "pattern"),
    "a pattern too long": ({"alpha_pattern": {"x" * 300: 2}}, UnsupportedModel, "pattern"),
    "a pattern that is none": ({"alpha_pattern": {"[9-0]": 2}}, BadModelFile, "pattern"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plain_lora_is_refused_by_name(base: Base, case: str) -> None:
    fields, error, word = REFUSED[case]
    base.say(**fields)
    with pytest.raises(error, match=word):
        base.open()


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float32)


BROKEN: dict[str, tuple[dict[str, Any], type[LocalLLMError], str]] = {
    "nothing": ({}, BadModelFile, "changes nothing"),
    "no B": ({f"{PREFIX}.lora_A.weight": floats(4, 64)}, BadModelFile, "only one"),
    "ranks that differ": (
        {f"{PREFIX}.lora_A.weight": floats(4, 64), f"{PREFIX}.lora_B.weight": floats(64, 8)}, BadModelFile, "fit",
    ),
    "a base of another width": (
        {f"{PREFIX}.lora_A.weight": floats(4, 32), f"{PREFIX}.lora_B.weight": floats(64, 4)},
        BadModelFile, "another model",
    ),
    "a base of other heads": (
        {f"{PREFIX}.lora_A.weight": floats(4, 64), f"{PREFIX}.lora_B.weight": floats(32, 4)},
        BadModelFile, "another model",
    ),
    "numbers that are none": (
        {f"{PREFIX}.lora_A.weight": floats(4, 64) * np.nan, f"{PREFIX}.lora_B.weight": floats(64, 4)},
        BadModelFile, "NaN",
    ),
    "a layer that is not there": (
        {
            name.replace("layers.0", "layers.9"): values
            for name, values in {
                f"{PREFIX}.lora_A.weight": floats(4, 64), f"{PREFIX}.lora_B.weight": floats(64, 4)
            }.items()
        },
        BadModelFile, "blk.9.attn_q",
    ),
    "an unknown module": (
        {"base_model.model.x.lora_A.weight": floats(4, 64), "base_model.model.x.lora_B.weight": floats(64, 4)},
        UnsupportedModel, "'x'",
    ),
    "the output": (
        {
            "base_model.model.lm_head.lora_A.weight": floats(4, 64),
            "base_model.model.lm_head.lora_B.weight": floats(80, 4),
        },
        UnsupportedModel, "output",
    ),
    "experts": (
        {
            f"base_model.model.model.layers.0.mlp.experts.0.up_proj.lora_{side}.weight": floats(*shape)
            for side, shape in (("A", (4, 64)), ("B", (80, 4)))
        },
        UnsupportedModel, "experts",
    ),
    "an embedding": (
        {"base_model.model.model.embed_tokens.lora_embedding_A": floats(4, 80)}, UnsupportedModel, "embedding",
    ),
    "magnitudes": ({f"{PREFIX}.lora_magnitude_vector": floats(64)}, UnsupportedModel, "DoRA"),
    "a whole matrix": ({f"{PREFIX}.weight": floats(64, 64)}, UnsupportedModel, "tensor"),
    "flat matrices": (
        {f"{PREFIX}.lora_A.weight": floats(64), f"{PREFIX}.lora_B.weight": floats(64)}, BadModelFile, "fit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_tensors_that_are_no_adapter_of_this_model_are_refused_by_name(base: Base, case: str) -> None:
    tensors, error, word = BROKEN[case]
    base.hold(tensors)
    with pytest.raises(error, match=word):
        base.open()


def test_pickles_are_never_opened(base: Base) -> None:
    (base.folder / "adapter_model.safetensors").unlink()
    (base.folder / "adapter_model.bin").write_bytes(b"\x80\x04pickled")
    with pytest.raises(BadModelFile, match="run code"):
        base.open()
    with pytest.raises(BadModelFile):
        base.open(base.folder / "adapter_model.bin")


def test_a_path_without_an_adapter_says_so(base: Base, tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match="no adapter"):
        base.open(tmp_path)
    with pytest.raises(ModelNotFound):
        base.open(tmp_path / "nothing")
    (base.folder / "adapter_config.json").write_text("[]")
    with pytest.raises(BadModelFile, match="not an object"):
        base.open()


GGUF: dict[str, Any] = {
    "general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora", "adapter.lora.alpha": 8.0,
}  # fmt: skip
PAIR = (("blk.0.attn_q.weight.lora_a", (4, 64)), ("blk.0.attn_q.weight.lora_b", (64, 4)))
BROKEN_GGUF: dict[str, tuple[Callable[[dict[str, Any]], object], Any, type[LocalLLMError], str]] = {
    "a model": (lambda said: said.update({"general.type": "model"}), PAIR, BadModelFile, "no adapter"),
    "another kind": (lambda said: said.update({"adapter.type": "control"}), PAIR, UnsupportedModel, "control"),
    "another architecture": (lambda said: said.update({"general.architecture": "qwen2"}), PAIR, BadModelFile, "qwen2"),
    "no alpha": (lambda said: said.pop("adapter.lora.alpha"), PAIR, BadModelFile, "alpha"),
    "alpha a text": (lambda said: said.update({"adapter.lora.alpha": "8"}), PAIR, BadModelFile, "alpha"),
    "activation": (
        lambda said: said.update({"adapter.alora.invocation_tokens": [1, 2]}), PAIR, UnsupportedModel, "aLoRA",
    ),
    "no B": (lambda said: None, PAIR[:1], BadModelFile, "only one"),
    "something else": (lambda said: None, (("blk.0.attn_q.weight", (64, 64)),), UnsupportedModel, "no part"),
    "too few rows": (
        lambda said: None, (PAIR[0], ("blk.0.attn_q.weight.lora_b", (63, 4))), BadModelFile, "rows",
    ),
    "the embedding": (
        lambda said: None,
        (("token_embd.weight.lora_a", (4, 80)), ("token_embd.weight.lora_b", (64, 4))),
        UnsupportedModel, "token_embd",
    ),
    "nothing": (lambda said: None, (), BadModelFile, "nothing"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_GGUF)
def test_gguf_files_that_are_no_adapter_of_this_model_are_refused_by_name(
    base: Base, tmp_path: Path, case: str
) -> None:
    change, tensors, error, word = BROKEN_GGUF[case]
    said = dict(GGUF)
    change(said)
    written = [(name, shape, BlockType.F32, floats(*shape).reshape(-1).view(np.uint8)) for name, shape in tensors]
    write_gguf(tmp_path / "lora.gguf", said, written)
    with pytest.raises(error, match=word):
        base.open(tmp_path / "lora.gguf")


def test_an_adapter_is_no_model_and_says_so(base: Base, tmp_path: Path) -> None:
    as_gguf(base.folder, tmp_path / "a.gguf", "llama", (4, 2))
    with GGUFFile.open(tmp_path / "a.gguf") as file, pytest.raises(UnsupportedModel, match="adapter"):
        gguf_model(file)
    for path in (base.folder, tmp_path / "a.gguf"):
        with pytest.raises(LocalLLMError, match="adapter"):
            LLM(path)
