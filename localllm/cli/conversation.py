"""What a conversation remembers between two prompts: model, messages, parameters. Turned into the body of a request."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from localllm.daemon.loras import NamedLora
from localllm.errors import UsageError

# Ollama's parameter names, the request fields they become, and their types
PARAMETERS: Mapping[str, tuple[str, type]] = {
    "seed": ("seed", int),
    "num_predict": ("max_tokens", int),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "temperature": ("temperature", float),
    "repeat_penalty": ("repetition_penalty", float),
    "repeat_last_n": ("repeat_last_n", int),
    "presence_penalty": ("presence_penalty", float),
    "frequency_penalty": ("frequency_penalty", float),
    "stop": ("stop", str),
}
NO_LIMIT = (-1, -2)  # Ollama's num_predict: without end, and until the context is full
# settings of the daemon here: pages are taken on demand, and a device is not chosen per request
DAEMON_SETTINGS: Mapping[str, str] = {"num_ctx": "context_length", "num_gpu": "backend", "num_thread": "threads"}


@dataclass(slots=True)
class Conversation:
    """`parameters` holds Ollama's names with values of the right type. `lora` is an adapter that the daemon has to be
    told of first."""

    model: str
    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    lora: NamedLora | None = None

    def set_parameter(self, name: str, values: list[str]) -> None:
        """UsageError for an unknown name or a value of the wrong type."""
        if name in DAEMON_SETTINGS:
            value = "NAME" if name == "num_gpu" else " ".join(values)
            hint = f"use `localllm config set {DAEMON_SETTINGS[name]} {value}`"
            raise UsageError(f"{name} is a setting of the daemon, not of a conversation", hint=hint)
        if name not in PARAMETERS:
            raise UsageError(f"unknown parameter {name!r}", hint=f"known are {', '.join(PARAMETERS)}")
        _, kind = PARAMETERS[name]
        self.parameters[name] = values if name == "stop" else _typed(name, kind, " ".join(values))

    def body(self) -> dict[str, Any]:
        """A request for the next answer."""
        fields = {PARAMETERS[name][0]: value for name, value in self.parameters.items()}
        if fields.get("max_tokens") in NO_LIMIT:
            del fields["max_tokens"]
        opening = [{"role": "system", "content": self.system}] if self.system else []
        applied = {"lora": [{"name": self.lora.name, "scale": self.lora.scale}]} if self.lora else {}
        return {"model": self.model, "messages": opening + self.messages, **fields, **self.extras, **applied}

    def say(self, role: str, text: str) -> None:
        self.messages.append({"role": role, "content": text})


def _typed(name: str, kind: type, text: str) -> Any:
    try:
        return finite(name, kind(text))
    except ValueError:
        raise UsageError(
            f"{name} takes a {'whole ' if kind is int else ''}number, not {text!r}", hint="e.g. 1"
        ) from None


def finite(name: str, value: Any) -> Any:
    """The value. UsageError for `nan` and `inf`: JSON has neither, and the daemon would never hear of them."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name} takes a finite number, not {value}", hint="leave it out for the model's own")
    return value
