"""The families we know, and which of them a file or a checkpoint is of. Cheap to import: it loads no arrays."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from localllm.errors import UnsupportedModel
from localllm.models.family import Family
from localllm.models.family_rows.dense import DENSE
from localllm.models.family_rows.encoders import ENCODERS
from localllm.models.family_rows.experts import EXPERTS
from localllm.models.family_rows.gemmas import GEMMAS
from localllm.models.family_rows.parallel import PARALLEL
from localllm.models.family_rows.recurrent import RECURRENT

# where two rows have a `model_type`, the first is the one without state
ROWS = (*DENSE, *PARALLEL, *GEMMAS, *EXPERTS, *ENCODERS, *RECURRENT)
FAMILIES: Mapping[str, Family] = MappingProxyType({row.architecture: row for row in ROWS})


def family_of(architecture: str) -> Family:
    """The row of a GGUF architecture; UnsupportedModel names it and those we know."""
    family = FAMILIES.get(architecture)
    if is_helper(architecture):
        raise helper_refused(architecture)
    if family is None:
        raise UnsupportedModel(
            f"this build cannot run the architecture {architecture!r}", hint="it runs " + ", ".join(sorted(FAMILIES))
        )
    return family


def is_helper(name: str) -> bool:
    """Whether an architecture, or a `model_type`, is of files that only guess tokens ahead of another model."""
    return name in ("gemma4-assistant", "gemma4_assistant", "gemma4_unified_assistant")


def helper_refused(name: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"this file only guesses tokens ahead of a Gemma 4 model ({name}), and is no model by itself",
        hint="take the model that it belongs to: it runs without",
    )


def family_of_type(model_type: str) -> Family | None:
    """The first row of a `model_type` of Hugging Face."""
    return next((family for family in ROWS if model_type in family.hf), None)


def is_encoder_architecture(architecture: str) -> bool:
    """Whether models of a GGUF architecture only make vectors."""
    family = FAMILIES.get(architecture)
    return family is not None and family.is_encoder


def is_encoder_config(config: Mapping[str, Any]) -> bool:
    """The same of a config.json: decoders may be trained to see both ways."""
    model_type = config.get("model_type", "")
    return isinstance(model_type, str) and (is_encoder_type(model_type) or sees_both_ways(config))


def sees_both_ways(config: Mapping[str, Any]) -> bool:
    """EmbeddingGemma, by its config.json."""
    return config.get("model_type") == "gemma3_text" and config.get("use_bidirectional_attention") is True


def is_encoder_type(model_type: str) -> bool:
    """The same of a `model_type` of Hugging Face."""
    family = family_of_type(model_type)
    return family is not None and family.is_encoder
