"""What holds where a request says nothing: its own fields, then the model's preset, then the file's defaults, then 1.0.

The same for the API and for scripts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from localllm import wire
from localllm.errors import InvalidRequest
from localllm.settings import Settings
from localllm.store.entry import Entry

PRESET_NAMES = {"repeat_penalty": "repetition_penalty"}
"""A Modelfile's names of sampling parameters to ours, where they differ."""


def sampling_in_force(
    given: Mapping[str, Any], preset: Mapping[str, Any], file_defaults: Mapping[str, Any]
) -> wire.SamplingParams:
    """The parameters of one request; a None in `given` counts as silence. InvalidRequest names what is out of bounds.

    A preset (catalog, Modelfile) may hold other things, such as stop strings: they are passed over here.
    """
    own = {PRESET_NAMES.get(name, name): value for name, value in preset.items()}
    values: dict[str, Any] = {}
    for layer in (file_defaults, own, given):
        values.update(
            (name, layer[name]) for name in wire.SamplingParams.__struct_fields__ if layer.get(name) is not None
        )
    try:
        return msgspec.convert(values, wire.SamplingParams).checked()
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"a sampling parameter has the wrong type: {error}") from None


def behind_opening(entry: Entry, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The conversation with what a Modelfile puts first; a system message that is given stands in for the preset's."""
    given = list(messages)
    system: list[Mapping[str, Any]] = [{"role": "system", "content": entry.system}] if entry.system else []
    if any(message.get("role") == "system" for message in given):
        system = [given.pop(0)] if given[0].get("role") == "system" else []
    return [*system, *entry.messages, *given]


def load_order(entry: Entry, settings: Settings) -> wire.Load:
    """How to open a model: the settings, and the preset's `num_ctx` where no context length is set."""
    wanted = entry.params.get("num_ctx")
    return wire.Load(
        path=entry.path,
        backend=settings.backend,
        threads=settings.threads,
        kv_pages=settings.kv_pages,
        page_size=settings.page_size,
        token_budget=settings.token_budget,
        max_sequences=settings.max_sequences,
        context_length=settings.context_length or (wanted if isinstance(wanted, int) else 0),
    )
