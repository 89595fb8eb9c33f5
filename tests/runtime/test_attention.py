"""Attention maps are those of transformers, and every way to look at them shows them."""

import json
from pathlib import Path

import numpy as np
import pytest

from localllm.errors import InvalidRequest, UsageError
from localllm.lab import attention_pictures
from localllm.runtime.attention import AttentionMaps, attention_of
from tests.oracles.hf import FAMILIES, as_folder, make_model, torch_and_transformers

IDS = np.random.default_rng(5).integers(3, 80, 23).tolist()
NAMES = ("llama", "gemma2", "qwen3", "gemma3", "gpt2", "mistral", "gpt-oss", "olmo2", "phi4")


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.name in NAMES], ids=lambda family: family.name
)
def test_the_maps_are_those_of_transformers(family: object, tmp_path: Path) -> None:
    torch, _ = torch_and_transformers()
    model = make_model(family)  # type: ignore[arg-type]  # a Family
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(torch.tensor([IDS]), output_attentions=True).attentions
    as_folder(model, tmp_path)
    maps = attention_of(tmp_path, IDS)
    assert maps.token_ids == tuple(IDS) and maps.names == tuple(range(len(expected)))
    for ours, theirs in zip(maps.layers, expected, strict=True):
        np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-4)
    with pytest.raises(InvalidRequest, match="there is no attention in layer 9"):
        maps.of(9)
    with pytest.raises(InvalidRequest, match="has no head 7"):
        maps.of(0, 7)
    np.testing.assert_allclose(maps.of(1), maps.layers[1].mean(axis=0))


def made(num_tokens: int = 3) -> AttentionMaps:
    weights = np.tril(np.ones((2, num_tokens, num_tokens), np.float32))
    weights /= weights.sum(axis=-1, keepdims=True)
    return AttentionMaps(tuple(range(num_tokens)), (0, 4), (weights, weights))


def test_a_terminal_shows_them_as_shades() -> None:
    rows = attention_pictures.shades(made().of(0), ["The", "·cat", "·sat"], 40)
    assert rows == [" The █", "·cat ▒▒", "·sat ░░░"] or rows == [" The █", "·cat ▓▓", "·sat ▒▒▒"]
    assert attention_pictures.shades(made().of(0), ["a", "b", "c"], 40, is_plain=True)[0] == "a @"
    narrow = attention_pictures.shades(made(30).of(0), ["x"] * 30, 12)
    assert narrow[0] == "the first 20 of 30 tokens are left out at this width" and max(map(len, narrow[1:])) <= 12


@pytest.mark.parametrize("ending", ["png", "svg"])
@pytest.mark.parametrize(("layer", "head"), [(None, None), (4, None), (0, 1)])
def test_pictures_are_written(tmp_path: Path, ending: str, layer: int | None, head: int | None) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"map.{ending}"
    attention_pictures.picture(made(), ["$x$", "<b>", "c"], path, layer, head)
    assert path.read_bytes().startswith(b"\x89PNG" if ending == "png" else b"<?xml")


def test_a_picture_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UsageError, match="could not be written"):
        attention_pictures.picture(made(), ["a", "b", "c"], tmp_path / "missing" / "map.png")


def test_the_page_holds_all_maps_and_nothing_of_a_text_runs() -> None:
    page = attention_pictures.page(made(), ["</script><script>alert(1)</script>", "b", "c"], "<model>")
    assert page.count("</script>") == 1 and "&lt;model&gt;" in page and "default-src 'none'" in page
    data = json.loads(page.split("const data = ")[1].split(", by = id")[0])
    assert [layer["name"] for layer in data["layers"]] == [0, 4]
    assert data["layers"][0]["heads"][1] == [[255, 0, 0], [128, 128, 0], [85, 85, 85]]


def test_too_long_a_text_is_refused(tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if family.name == "llama")
    as_folder(make_model(family), tmp_path)
    with pytest.raises(InvalidRequest, match="attention is shown for 1 to 256 tokens, not 257"):
        attention_of(tmp_path, [5] * 257)
