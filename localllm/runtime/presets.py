"""What holds where a request says nothing: its own fields, then the model's preset, then the file's defaults, then 1.0.

The same for the API and for scripts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from localllm import wire
from localllm.errors import InvalidRequest, UsageError
from localllm.settings import BACKENDS, BY_NAME, KV_TYPES, Settings
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


QUANTIZE = ("q8_0", "q4_0", "q4_k", "none", "")


class LoadWish(msgspec.Struct, frozen=True):
    """How a request wants a model to be open; None: as it is, or as the settings say. `quantize` "none": not at all."""

    backend: str | None = None
    device: str | None = None
    kv_type: str | None = None
    threads: int | None = None
    quantize: str | None = None

    def checked(self) -> "LoadWish":
        """Itself; InvalidRequest naming the field that has no such choice, or none beside the others."""
        for name, choices in (("backend", BACKENDS), ("kv_type", KV_TYPES), ("quantize", QUANTIZE)):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise InvalidRequest(
                    f"{name} must be one of {', '.join(filter(None, choices))}, not {value!r}", param=name
                )
        if self.threads is not None:
            try:
                BY_NAME["threads"].checked(self.threads)
            except UsageError as error:
                raise InvalidRequest(error.message, param="threads") from None
        if self.device and self.backend not in (None, "auto", "torch") and self.device != "cpu":
            raise InvalidRequest(
                f"device {self.device!r} is one of the torch backend, not of {self.backend}",
                hint="leave device out, or ask for the torch backend",
                param="device",
            )
        return self


NO_WISH = LoadWish()


def load_order(entry: Entry, settings: Settings, wish: LoadWish = NO_WISH) -> wire.Load:
    """How to open a model: the wish, then the settings, and the preset's `num_ctx` where no context length is set."""
    wanted = entry.params.get("num_ctx")
    order = wire.Load(
        path=entry.path,
        backend=settings.backend,
        device=settings.device,
        kv_type=settings.kv_type,
        cache_dir=str(settings.cache_dir),
        threads=settings.threads,
        speculation=settings.speculation,
        kv_pages=settings.kv_pages,
        page_size=settings.page_size,
        token_budget=settings.token_budget,
        max_sequences=settings.max_sequences,
        context_length=settings.context_length or (wanted if isinstance(wanted, int) else 0),
    )
    return msgspec.structs.replace(order, **wish_fields(wish))


def wish_fields(wish: LoadWish) -> dict[str, Any]:
    """What is wished, under the names of `wire.Load`."""
    given = {name: value for name, value in msgspec.structs.asdict(wish.checked()).items() if value is not None}
    if given.get("quantize") == "none":
        given["quantize"] = ""
    return given
