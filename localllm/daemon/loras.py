"""Adapters that requests may name: given when the daemon starts, or told to it later.

Only names and paths; workers read the files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllm.errors import InvalidRequest, UsageError

if TYPE_CHECKING:
    from localllm.models.adapters import AdapterFacts

MAX_LORAS = 1024
MAX_SCALE = 100.0
GOOD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SEPARATOR = "+"
"""Between a model and an adapter of it, where a request names both in one."""


@dataclass(frozen=True, slots=True)
class NamedLora:
    """`scale`: what it is multiplied by where a request says nothing else."""

    name: str
    path: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Applied:
    """An adapter of one request. An empty path: none at all, not even the model's own."""

    path: str
    scale: float = 1.0


class Loras:
    """The adapters of one daemon, numbered in the order in which they came."""

    def __init__(self, given: Sequence[NamedLora] = ()) -> None:
        self._named: dict[str, NamedLora] = {}
        for lora in given:
            if lora.name in self._named:
                raise UsageError(f"two adapters are called {lora.name}", hint="give one of them a name: NAME=PATH")
            self._named[lora.name] = lora

    def all(self) -> list[NamedLora]:
        return list(self._named.values())

    def add(self, lora: NamedLora) -> None:
        """Known from now on. InvalidRequest where the name is another's; the same again changes its scale."""
        if not GOOD_NAME.fullmatch(lora.name):
            raise InvalidRequest(
                "lora_name must be 1 to 128 letters, digits, dots, dashes and underscores", param="lora_name"
            )
        known = self._named.get(lora.name)
        if known is not None and known.path != lora.path:
            raise InvalidRequest(f"{lora.name} is another adapter", hint="unload it first", param="lora_name")
        if known is None and len(self._named) >= MAX_LORAS:
            raise InvalidRequest(f"there are {MAX_LORAS} adapters already", hint="unload some", param="lora_name")
        self._named[lora.name] = lora

    def remove(self, name: str) -> NamedLora:
        """Requests cannot name it any more; those under way go on. InvalidRequest for an unknown name."""
        if name not in self._named:
            raise InvalidRequest(f"no adapter is called {name}", hint=self._known(), param="lora_name")
        return self._named.pop(name)

    def find(self, name: str) -> NamedLora:
        lora = self._named.get(name)
        if lora is None:
            raise InvalidRequest(f"no adapter is called {name[:100]!r}", hint=self._known(), param="lora")
        return lora

    def split(self, model: str) -> tuple[str, NamedLora | None]:
        """`base+adapter` as its two; a name without a known adapter is the model's alone."""
        base, separator, name = model.rpartition(SEPARATOR)
        lora = self._named.get(name) if separator and base else None
        return (model, None) if lora is None else (base, lora)

    def chosen(self, wanted: str | Sequence[Mapping[str, Any]] | None) -> Applied | None:
        """What a request's `lora` asks for; None where it says nothing. It was checked by `check_lora`."""
        if wanted is None:
            return None
        if isinstance(wanted, str):
            return self._applied(self.find(wanted), None) if wanted else Applied("")
        asked = [(self._of(item), item.get("scale")) for item in wanted]
        applied = [self._applied(lora, scale) for lora, scale in asked if scale != 0]
        if len({each.path for each in applied}) > 1:
            names = " and ".join(lora.name for lora, scale in asked if scale != 0)
            raise InvalidRequest(
                f"lora names {names}: only one adapter can be applied to a request",
                hint="give the others the scale 0, or leave them out",
                param="lora",
            )
        return applied[-1] if applied else Applied("")

    def _of(self, item: Mapping[str, Any]) -> NamedLora:
        if "name" in item:
            return self.find(str(item["name"]))
        loras = self.all()
        number = int(item["id"])
        if not number < len(loras):
            raise InvalidRequest(f"no adapter has the id {number}", hint=self._known(), param="lora")
        return loras[number]

    def _applied(self, lora: NamedLora, scale: float | None) -> Applied:
        return Applied(lora.path, lora.scale if scale is None else float(scale))

    def _known(self) -> str:
        if not self._named:
            return "start the daemon with `--lora [NAME=]PATH`, or POST /v1/load_lora_adapter"
        return f"known: {', '.join(list(self._named)[:20])}"


def check_lora(wanted: str | Sequence[Mapping[str, Any]] | None) -> None:
    """InvalidRequest for a `lora` that is neither a name, nor a list of adapters by `id` or `name`, with a `scale`."""
    if wanted is None or isinstance(wanted, str):
        return
    if len(wanted) > MAX_LORAS:
        raise InvalidRequest(f"lora may hold at most {MAX_LORAS} adapters", param="lora")
    for item in wanted:
        strange = next((key for key in item if key not in ("id", "name", "scale")), None)
        if strange is not None:
            raise InvalidRequest(f"lora holds the unknown field {strange[:64]!r}", param="lora")
        if ("id" in item) is ("name" in item):
            raise InvalidRequest("each of lora must have an id or a name, and not both", param="lora")
        if "id" in item and (type(item["id"]) is not int or item["id"] < 0):
            raise InvalidRequest("the id of lora must be a whole number from 0 on", param="lora")
        if "name" in item and not isinstance(item["name"], str):
            raise InvalidRequest("the name of lora must be a string", param="lora")
        check_scale(item.get("scale"))


def check_scale(scale: Any, param: str = "lora") -> None:
    """InvalidRequest for a scale that is none."""
    if scale is None:
        return
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not -MAX_SCALE <= scale <= MAX_SCALE:
        raise InvalidRequest(
            f"the scale of an adapter must be a number between -{MAX_SCALE:g} and {MAX_SCALE:g}", param=param
        )


def parsed_lora(text: str) -> NamedLora:
    """`[NAME=]PATH[:SCALE]`; the name of the file or folder where none is given. UsageError for what is none."""
    name, separator, rest = text.partition("=")
    if not separator or "/" in name:
        name, rest = "", text
    path, scale = _with_scale(rest)
    if not path:
        raise UsageError(f"{text!r} names no adapter", hint="--lora takes [NAME=]PATH[:SCALE]")
    place = Path(os.path.expanduser(path)).absolute()  # pathlib raises for homes of users that there are not
    name = name or _usual_name(place)
    if not GOOD_NAME.fullmatch(name):
        raise UsageError(
            f"an adapter cannot be called {name!r}",
            hint="give it a name of letters, digits, dots and dashes: NAME=PATH",
        )
    return NamedLora(name, str(place), scale)


def parsed_loras(text: str) -> list[NamedLora]:
    """Several, with commas between them, as the setting has them."""
    return [parsed_lora(part.strip()) for part in text.split(",") if part.strip()]


def _with_scale(text: str) -> tuple[str, float]:
    path, separator, tail = text.rpartition(":")
    try:
        scale = float(tail) if separator else 1.0
    except ValueError:
        return text, 1.0
    if not separator:
        return text, 1.0
    if not -MAX_SCALE <= scale <= MAX_SCALE:
        raise UsageError(f"the scale of an adapter must be between -{MAX_SCALE:g} and {MAX_SCALE:g}, not {tail}")
    return path, scale


def _usual_name(place: Path) -> str:
    """Of the folder where the file is called as all are."""
    if place.name in ("adapter_model.safetensors", "adapter_config.json"):
        return place.parent.name
    return place.name.removesuffix(".gguf").removesuffix(".safetensors")


def facts_of(path: str) -> AdapterFacts:
    """What an adapter says of itself. ModelNotFound, BadModelFile, UnsupportedModel."""
    from localllm.models.open_adapter import adapter_facts  # deferred: numpy and the formats come with it

    return adapter_facts(Path(path))
