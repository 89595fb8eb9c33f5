"""Modelfiles, read and written. The directives, quoting and error texts are Ollama's, so that its files work here."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from localllm.errors import StoreError, UsageError
from localllm.store.entry import Entry

MAX_MODELFILE_BYTES = 4 << 20
COMMANDS = (
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter", "message",
    "requires",
)  # fmt: skip
ROLES = ("system", "user", "assistant")
_SINGLE = ("template", "system", "draft", "renderer", "parser", "requires")

_INT, _FLOAT, _BOOL, _LIST = "int", "float", "bool", "list"
_KIND_NAMES = {_INT: "a whole number", _FLOAT: "a number", _BOOL: "true or false"}
PARAMETERS: Mapping[str, str] = {
    "num_ctx": _INT, "num_batch": _INT, "num_gpu": _INT, "main_gpu": _INT, "num_thread": _INT, "num_keep": _INT,
    "seed": _INT, "num_predict": _INT, "top_k": _INT, "repeat_last_n": _INT, "draft_num_predict": _INT,
    "temperature": _FLOAT, "top_p": _FLOAT, "min_p": _FLOAT, "typical_p": _FLOAT, "tfs_z": _FLOAT,
    "repeat_penalty": _FLOAT, "presence_penalty": _FLOAT, "frequency_penalty": _FLOAT,
    "use_mmap": _BOOL, "numa": _BOOL, "stop": _LIST,
}  # fmt: skip
IGNORED_PARAMETERS = frozenset(
    {
        "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock",
        "mirostat", "mirostat_tau", "mirostat_eta",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Modelfile:
    """A parsed Modelfile. `from_` are its FROM lines, several for a split model; `warnings` say what is ignored."""

    from_: tuple[str, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    template: str = ""
    system: str = ""
    license: str = ""
    messages: tuple[dict[str, str], ...] = ()
    adapters: tuple[str, ...] = ()
    draft: str = ""
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    warnings: tuple[str, ...] = ()


def _decoded(raw: bytes) -> str:
    if len(raw) > MAX_MODELFILE_BYTES:
        raise UsageError("the file is too large to be a Modelfile", hint="name a Modelfile with -f")
    try:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return raw.decode("utf-16")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError("the Modelfile is no text file", hint="save it as UTF-8") from None


def parse_modelfile(text: str | bytes) -> Modelfile:
    """Text, or bytes in UTF-8 or UTF-16, to a Modelfile. UsageError names the line; `no FROM line` when it has none."""
    text = _decoded(text) if isinstance(text, bytes) else text
    found: dict[str, list[str]] = {command: [] for command in COMMANDS}
    params: dict[str, Any] = {}
    messages: list[dict[str, str]] = []
    warnings: list[str] = []
    for number, command, value in _statements(text.removeprefix("\ufeff")):
        if command == "parameter":
            _set_parameter(params, warnings, number, value)
        elif command == "message":
            messages.append(_message(number, value))
        else:
            found[command].append(_unquoted(value))
    if not found["from"]:
        raise UsageError("no FROM line", hint="a Modelfile starts from a model: FROM smollm2:135m")
    single = {command: found[command][-1] for command in _SINGLE if found[command]}
    return Modelfile(
        from_=tuple(found["from"]),
        params=params,
        license="\n".join(found["license"]),
        messages=tuple(messages),
        adapters=tuple(found["adapter"]),
        warnings=tuple(warnings),
        **single,
    )


def _statements(text: str) -> list[tuple[int, str, str]]:
    """(line number, command, raw value) of each directive; a value in triple quotes may span lines."""
    lines = text.splitlines()
    statements: list[tuple[int, str, str]] = []
    index = 0
    while index < len(lines):
        number, line = index + 1, lines[index].strip()
        index += 1
        if not line or line.startswith("#"):
            continue
        word, _, value = line.partition(" ")
        if word.lower() not in COMMANDS:
            raise UsageError(f"(line {number}): command must be one of {_quoted_list(COMMANDS)}")
        prefix, opened, _ = value.partition('"""')
        if opened and _may_open(prefix, word.lower()):
            index, value = _until_closed(lines, index, number, prefix, lines[number - 1].partition('"""')[2])
        statements.append((number, word.lower(), value.strip() if not opened else value))
    return statements


def _may_open(prefix: str, command: str) -> bool:
    """Quotes open a value only at its start: behind the command, a role or a parameter's name."""
    return len(prefix.split()) == (1 if command in ("message", "parameter") else 0)


def _until_closed(lines: list[str], index: int, number: int, prefix: str, first: str) -> tuple[int, str]:
    """The raw value up to the line that ends with triple quotes, and the index of the line behind it."""
    parts = [first]
    while not parts[-1].rstrip().endswith('"""'):
        if index == len(lines):
            raise UsageError(f'(line {number}): the """ that opens here is never closed')
        parts.append(lines[index])
        index += 1
    return index, f'{prefix}"""' + "\n".join(parts).rstrip()


def _unquoted(value: str) -> str:
    if len(value) >= 6 and value.startswith('"""') and value.endswith('"""'):
        return value[3:-3]
    if len(value) >= 2 and value.startswith('"') and value.endswith('"'):
        return value[1:-1]
    return value


def _message(number: int, value: str) -> dict[str, str]:
    role, _, content = value.partition(" ")
    if role.lower() not in ROLES:
        raise UsageError(f"(line {number}): message role must be one of {_quoted_list(ROLES)}")
    return {"role": role.lower(), "content": _unquoted(content.lstrip(" "))}


def _set_parameter(params: dict[str, Any], warnings: list[str], number: int, line: str) -> None:
    name, _, text = line.partition(" ")
    name, text = name.lower(), _unquoted(text.strip(" "))
    if name in IGNORED_PARAMETERS:
        warnings.append(f"the parameter {name} has no meaning here and is ignored")
        return
    kind = PARAMETERS.get(name)
    if kind is None:
        raise UsageError(f"(line {number}): unknown parameter '{name}'", hint=f"known are {', '.join(PARAMETERS)}")
    if kind == _LIST:
        params.setdefault(name, []).append(text)
    else:
        params[name] = _typed(number, name, kind, text)


def _typed(number: int, name: str, kind: str, text: str) -> Any:
    try:
        if kind == _BOOL:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return int(text) if kind == _INT else float(text)
    except (KeyError, ValueError):
        raise UsageError(f"(line {number}): the parameter {name} must be {_KIND_NAMES[kind]}, not {text!r}") from None


def typed_parameters(given: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Parameters that come with types of their own, and warnings about those that mean nothing here. UsageError names
    one that is unknown or of the wrong type."""
    params: dict[str, Any] = {}
    warnings: list[str] = []
    for name, value in given.items():
        if name in IGNORED_PARAMETERS:
            warnings.append(f"the parameter {name} has no meaning here and is ignored")
        elif name not in PARAMETERS:
            raise UsageError(f"unknown parameter '{name[:100]}'", hint=f"known are {', '.join(PARAMETERS)}")
        else:
            params[name] = _as_kind(name, PARAMETERS[name], value)
    return params, tuple(warnings)


def _as_kind(name: str, kind: str, value: Any) -> Any:
    if kind == _LIST:
        value = [value] if isinstance(value, str) else value
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
        raise UsageError(f"the parameter {name} must be a text or a list of texts")
    if kind == _INT and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind == _FLOAT and type(value) is int:
        value = float(value)
    if type(value).__name__ != kind:
        raise UsageError(f"the parameter {name} must be {_KIND_NAMES[kind]}, not {str(value)[:100]!r}")
    return value


def _quoted_list(words: tuple[str, ...]) -> str:
    return ", ".join(f'"{word}"' for word in words[:-1]) + f', or "{words[-1]}"'


def template_kind(template: str) -> str:
    """`go` for Ollama's template language, `jinja` for the hub's, "" for no template."""
    if not template:
        return ""
    is_jinja = "{%" in template or "messages" in template.replace(".Messages", "")
    return "go" if "{{" in template and not is_jinja else "jinja"


def render_modelfile(entry: Entry) -> str:
    """A Modelfile that makes this entry again, here or in Ollama."""
    lines = [f"# Modelfile of {entry.name}, written by localllm", f"FROM {_quote(entry.parent or entry.path)}"]
    lines += [f"ADAPTER {_quote(path)}" for path in entry.adapters]
    lines += [f"{word} {_quote(text)}" for word, text in _texts(entry) if text]
    for name, value in entry.params.items():
        if name in PARAMETERS:  # the catalog's sampling may say more than a Modelfile can
            lines += [
                f"PARAMETER {name} {_parameter_text(item)}" for item in (value if isinstance(value, list) else [value])
            ]
    lines += [f"MESSAGE {message['role']} {_quote(message['content'])}" for message in entry.messages]
    return "\n".join(lines) + "\n"


def _texts(entry: Entry) -> list[tuple[str, str]]:
    return [
        ("DRAFT", entry.draft),
        ("RENDERER", entry.origin.get("renderer", "")),
        ("PARSER", entry.origin.get("parser", "")),
        ("REQUIRES", entry.origin.get("requires", "")),
        ("TEMPLATE", entry.template),
        ("SYSTEM", entry.system),
        ("LICENSE", entry.license),
    ]


def _parameter_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return _quote(value) if isinstance(value, str) else str(value)


def _quote(text: str) -> str:
    """Bare where that reads back unchanged, else in triple quotes."""
    if text and text == text.strip() and len(text.splitlines()) == 1 and not text.startswith('"'):
        return text
    if any(line.rstrip().endswith('"""') for line in text.split("\n")) or "\r" in text:
        raise StoreError('a Modelfile cannot hold a text with a line that ends with """', hint="use --json instead")
    return f'"""{text}"""'
