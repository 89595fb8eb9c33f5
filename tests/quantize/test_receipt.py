"""Receipts: what is written is what is read, and nonsense of strangers is none."""

import math

import msgspec
import pytest

from localllm.quantize.receipt import (
    ERROR,
    LAYER_ERRORS,
    PREFIX,
    TENSOR_ERRORS,
    Errors,
    Measured,
    Receipt,
    as_metadata,
    in_metadata,
    layer_of,
    with_errors,
)

TYPES = {"token_embd.weight": "Q8_0", "blk.0.ffn_up.weight": "Q4_K", "blk.1.ffn_up.weight": "Q4_K", "norm": "F32"}
MADE = Receipt(
    recipe="Q4_K_M", source="a:1b", source_digest="ab", imatrix="text.txt", keep=("a=q8_0", "b=f16"), pure=True
)


def measured_errors() -> Errors:
    errors = Errors(list(TYPES))
    errors.note("blk.0.ffn_up.weight", 9.0, 100.0)
    errors.note("blk.1.ffn_up.weight", 1.0, 100.0)
    return errors


def test_errors_are_roots_of_summed_squares() -> None:
    errors = measured_errors()
    assert errors.of_tensors() == [0.0, 0.3, 0.1, 0.0] and errors.of_layers() == [0.3, 0.1]
    assert errors.of_all() == pytest.approx(math.sqrt(10 / 200))


def test_a_receipt_is_read_from_a_file_as_it_was_written() -> None:
    errors = measured_errors()
    figures = Measured(
        against="a:1b", text="t", tokens=9, kl_mean=0.1, kl_p99=0.5, same_top=0.9, ppl=7.0, ppl_ratio=1.1
    )
    receipt = msgspec.structs.replace(with_errors(MADE, errors, TYPES), version="1", measured=figures)
    assert [each.name for each in receipt.worst] == ["blk.0.ffn_up.weight", "blk.1.ffn_up.weight"]
    keys = {ERROR: errors.of_all(), LAYER_ERRORS: errors.of_layers(), TENSOR_ERRORS: errors.of_tensors()}
    assert in_metadata(as_metadata(receipt) | keys, TYPES) == receipt


def test_layers_are_known_by_either_kind_of_name() -> None:
    assert layer_of("blk.12.attn_q.weight") == layer_of("model.layers.12.mlp.up_proj.weight") == 12
    assert layer_of("output.weight") is None


@pytest.mark.parametrize(
    "nonsense",
    [
        {ERROR: "much", LAYER_ERRORS: 7, TENSOR_ERRORS: [1.0] * 3},
        {ERROR: float("nan"), LAYER_ERRORS: ["a", True, float("inf")], TENSOR_ERRORS: [{}] * 4},
        {f"{PREFIX}keep": 5, f"{PREFIX}version": [1], f"{PREFIX}pure": "yes", f"{PREFIX}measured.kl_mean": "x"},
    ],
)
def test_keys_of_strangers_are_taken_for_what_they_are(nonsense: dict[str, object]) -> None:
    assert in_metadata({}, TYPES) is None and in_metadata({f"{PREFIX}recipe": 4}, TYPES) is None
    found = in_metadata({f"{PREFIX}recipe": "Q4_0", **nonsense}, TYPES)
    assert found is not None and found.recipe == "Q4_0" and not found.worst and not found.pure
    assert all(map(math.isfinite, (found.error, *found.layers)))
