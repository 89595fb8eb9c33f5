"""Typed settings from flags, environment and config file, and every path we use. Creates nothing on import."""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs

from localllm.errors import UsageError

DEFAULT_PORT = 11435
MAX_CONFIG_BYTES = 1 << 20
MAX_INT = 2**31 - 1
"""Larger counts are slips, and not every part that is told of them could hold them."""
DURATION = re.compile(r"[+-]?\d+(?:\.\d+)?|[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h|d))+")
"""Seconds, or "1h30m"; anything negative is for ever."""
BACKENDS = ("auto", "cpu", "torch", "metal", "reference")
KvType = Literal["auto", "f16", "f32", "q8_0"]
OF_LOADING = ("backend", "device", "kv_type", "threads")
"""Settings that say how a model is to be open: a command tells them to a daemon."""
KV_TYPES: tuple[KvType, ...] = ("auto", "f16", "f32", "q8_0")
Speculation = Literal["auto", "off", "4", "8", "16", "32"]
SPECULATIONS: tuple[Speculation, ...] = ("auto", "off", "4", "8", "16", "32")


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the settings table: what `localllm config` and the docs print."""

    name: str
    kind: type
    default: Any
    help: str
    env: str
    aliases: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    pattern: re.Pattern[str] | None = None
    looks_like: str = ""

    def checked(self, value: Any) -> Any:
        """`value` itself when it has the type and is in bounds; UsageError with what would be right."""
        if self.kind is float and type(value) is int:
            value = float(value)
        kind: type = type(value)
        if kind is not self.kind:  # `isinstance` would take true for a number
            raise UsageError(f"{self.name} must be {_KINDS[self.kind]}, not {value!r}", hint=self._example())
        if self.choices and value not in self.choices:
            raise UsageError(f"{self.name} must be one of {', '.join(self.choices)}, not {value!r}")
        if self.pattern and not self.pattern.fullmatch(value.strip()):
            raise UsageError(f"{self.name} must be {self.looks_like}, not {value!r}", hint=self._example())
        self._check_bounds(value)
        return value

    def _check_bounds(self, value: Any) -> None:
        if self.low is None:
            return
        high = self.high if self.high is not None else MAX_INT if self.kind is int else math.inf
        if not self.low <= value <= high:  # NaN is out of bounds, too
            is_open = self.high is None and not value > high
            bounds = f"at least {self.low}" if is_open else f"between {self.low} and {high}"
            raise UsageError(f"{self.name} must be {bounds}, not {value}", hint=self._example())

    def _example(self) -> str:
        return f"set it with `localllm config set {self.name} {str(self.default).lower()}`"


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_TRUE, _FALSE = ("1", "true", "t", "yes", "on"), ("", "0", "false", "f", "no", "off")


def _row(
    name: str,
    kind: type,
    default: Any,
    text: str,
    *aliases: str,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    pattern: re.Pattern[str] | None = None,
    looks_like: str = "",
) -> Setting:
    env = "LOCALLLM_" + name.upper()
    return Setting(name, kind, default, text, env, aliases, low, high, choices, pattern, looks_like)


SETTINGS: tuple[Setting, ...] = (
    _row("host", str, "127.0.0.1", "address the daemon listens on; `host:port` is accepted"),
    _row("port", int, DEFAULT_PORT, "port the daemon listens on; 0 takes a free one", low=0, high=65535),
    _row(
        "remote",
        str,
        "",
        "address of a daemon on another machine that commands talk to where `host` is not set; the daemon itself never "
        "listens there, and one of this machine, or of Ollama's own, is passed over",
        "OLLAMA_HOST",
    ),
    _row(
        "ollama_port",
        int,
        0,
        "second port, for programs that look for Ollama at 11434; passed over while another program has it; 0: none",
        low=0,
        high=65535,
    ),
    _row("api_keys", str, "", "comma-separated keys that clients must send; empty: none on loopback"),
    _row("max_body_mb", int, 16, "largest request body in MiB", low=1, high=1024),
    _row("origins", str, "", "comma-separated extra browser origins that may call the API", "OLLAMA_ORIGINS"),
    _row("default_model", str, "smollm2:135m", "model of `localllm chat` and of requests that name none"),
    _row("backend", str, "auto", "what computes; auto: the fastest one here", choices=BACKENDS),
    _row("device", str, "", "device of the torch backend: cpu, cuda, cuda:1, mps; empty: the best one"),
    _row("kv_type", str, "auto", "how keys and values are kept; auto: what suits the backend", choices=KV_TYPES),
    _row("threads", int, 0, "threads of the CPU backend; 0: one per physical core", low=0, high=256),
    _row("speculation", str, "auto", "most tokens guessed from the text and checked in a step", choices=SPECULATIONS),
    _row("kv_pages", int, 0, "pages of the KV pool; 0: as many as memory allows", low=0),
    _row("page_size", int, 16, "tokens in a page", low=1),
    _row("token_budget", int, 512, "tokens computed in one step at most", low=1),
    _row("max_sequences", int, 256, "sequences that run at the same time at most", low=1),
    _row("max_queue", int, 512, "requests that may wait; beyond that the answer is 503", low=0),
    _row("max_queue_tokens", int, 0, "prompt tokens that may be under way; beyond that 503; 0: no limit", low=0),
    _row("max_requests_per_key", int, 0, "requests of one key under way; beyond that 429; 0: no limit", low=0),
    _row("max_tokens_per_key", int, 0, "prompt tokens of one key under way; beyond that 429; 0: no limit", low=0),
    _row("request_timeout_s", float, 0.0, "seconds after which a request is given up; 0: never", low=0.0),
    _row("lora", str, "", "comma-separated adapters that requests may name: [NAME=]PATH[:SCALE]"),
    _row("max_loaded_models", int, 3, "models that stay loaded at the same time", low=1),
    _row("context_length", int, 0, "tokens a sequence may have; 0: the model's own maximum", low=0),
    _row(
        "keep_alive",
        str,
        "5m",
        "how long an idle model stays loaded: 30s, 5m, 1h, 0, or -1 for ever",
        pattern=DURATION,
        looks_like="seconds or a duration such as 5m",
    ),
    _row("max_tokens", int, 0, "tokens of an answer when the request sets no limit; 0: what the context holds", low=0),
    _row("max_tokens_ceiling", int, 0, "most tokens of an answer that a request may ask for; 0: no limit", low=0),
    _row("hub_endpoint", str, "", "address of a Hugging Face mirror", "HF_ENDPOINT"),
    _row("hub_timeout_s", float, 3.0, "seconds after which the hub counts as unreachable", low=0.1),
    _row("offline", bool, False, "never use the network", "HF_HUB_OFFLINE"),
    _row("ollama_models", str, "", "folder of an Ollama store to read in place", "OLLAMA_MODELS"),
    _row("lmstudio_models", str, "", "folder of LM Studio models to read in place"),
    _row("theme", str, "dark", "colours of the terminal application", choices=("dark", "light", "contrast", "mono")),
    _row("log_level", str, "info", "how much the daemon logs", choices=("debug", "info", "warning", "error")),
)
# a name, an IPv4 address, or an IPv6 address with or without brackets and zone
_HOST = re.compile(r"[A-Za-z0-9._-]*|\[?[0-9A-Fa-f:.]*(%\w+)?\]?")
BY_NAME: Mapping[str, Setting] = {row.name: row for row in SETTINGS}


@dataclass(frozen=True, slots=True)
class Settings:
    """The values in force. `origin` says for each name whether flag, environment, file or default gave it."""

    home: Path
    host: str
    port: int
    remote: str
    ollama_port: int
    api_keys: str
    max_body_mb: int
    origins: str
    default_model: str
    backend: str
    device: str
    kv_type: KvType
    threads: int
    speculation: Speculation
    kv_pages: int
    page_size: int
    token_budget: int
    max_sequences: int
    max_queue: int
    max_queue_tokens: int
    max_requests_per_key: int
    max_tokens_per_key: int
    request_timeout_s: float
    lora: str
    max_loaded_models: int
    context_length: int
    keep_alive: str
    max_tokens: int
    max_tokens_ceiling: int
    hub_endpoint: str
    hub_timeout_s: float
    offline: bool
    ollama_models: str
    lmstudio_models: str
    theme: str
    log_level: str
    origin: Mapping[str, str]

    @property
    def config_file(self) -> Path:
        return self.home / "config.toml"

    @property
    def keys_file(self) -> Path:
        """API keys, hashed."""
        return self.home / "keys.json"

    @property
    def store_dir(self) -> Path:
        """Manifests (`manifests/`), files we downloaded ourselves (`files/`) and locks (`locks/`)."""
        return self.home / "store"

    @property
    def run_dir(self) -> Path:
        """Lock, address file and sockets of this home's daemon."""
        return self.home / "run"

    @property
    def address_file(self) -> Path:
        return self.run_dir / "daemon.json"

    @property
    def daemon_lock(self) -> Path:
        return self.run_dir / "daemon.lock"

    @property
    def log_file(self) -> Path:
        return self.home / "logs" / "daemon.log"

    @property
    def cache_dir(self) -> Path:
        """What can be found out again: how fast the backends are."""
        return self.home / "cache"

    @property
    def bench_dir(self) -> Path:
        """Benchmark runs that were kept under a name."""
        return self.home / "bench"

    @property
    def bindings_file(self) -> Path:
        """Other keys for the terminal application: `"chat.send" = "ctrl+s"`."""
        return self.home / "bindings.toml"

    @property
    def chats_file(self) -> Path:
        """Chats that are kept."""
        return self.home / "chats.db"

    @property
    def repl_history_file(self) -> Path:
        return self.home / "history"


def home_dir(env: Mapping[str, str] | None = None) -> Path:
    """`LOCALLLM_HOME`, or the platform's data folder for this user."""
    named = (os.environ if env is None else env).get("LOCALLLM_HOME")
    return Path(named).expanduser().absolute() if named else Path(platformdirs.user_data_dir("localllm"))


def parse_value(row: Setting, text: str) -> Any:
    """Text from the environment or a command line as the setting's type; UsageError when it is not one."""
    text = text.strip().strip("'\"")
    if row.kind is bool:
        return row.checked(True if text.lower() in _TRUE else False if text.lower() in _FALSE else text)
    with contextlib.suppress(ValueError):  # then the text itself has the wrong type, and `checked` says so
        return row.checked(row.kind(text))
    return row.checked(text)


def read_config(path: Path) -> dict[str, Any]:
    """The config file's table; empty when there is none. UsageError for what cannot be read, bad TOML, unknown names
    and wrong types."""
    return {name: _checked(path, name, value) for name, value in parse_config(config_text(path), path).items()}


def config_text(path: Path) -> str:
    """The text of the config file, without the mark that some editors put before UTF-8; empty when there is none.
    UsageError when it cannot be read."""
    try:
        return _text_of_regular(path)
    except FileNotFoundError:
        return ""
    except NotADirectoryError:
        hint = "LOCALLLM_HOME names the folder that everything is kept in: choose one that can be written"
        raise UsageError(f"{path.parent} is no folder", hint=hint) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"{path} cannot be read: {reason}", hint="it has to be a file that you may read") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}", hint="correct it or remove it") from None


def parse_config(text: str, path: Path) -> dict[str, Any]:
    """The table of a config file's text, as it stands there. UsageError when it is not valid TOML."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {_why_not(error)}", hint="correct it or remove it") from None


def _text_of_regular(path: Path) -> str:
    """A pipe would hang, /dev/zero would never end."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(None, "it is not a regular file")
        if status.st_size > MAX_CONFIG_BYTES:
            raise OSError(None, f"it is larger than {MAX_CONFIG_BYTES} bytes")
        return file.read().decode("utf-8-sig")


def _why_not(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, tomllib.TOMLDecodeError):
        return str(error)
    return "it has a number with thousands of digits"  # what else Python refuses, in words of ours


def _checked(path: Path, name: str, value: Any) -> Any:
    row = BY_NAME.get(name)
    if row is None:
        raise UsageError(f"{path} sets {name!r}, which is no setting", hint="see `localllm config list`")
    return parse_value(row, value) if isinstance(value, str) else row.checked(value)


def load_settings(env: Mapping[str, str] | None = None, **flags: Any) -> Settings:
    """Flags over environment over config file over defaults; a flag of None counts as absent."""
    env = os.environ if env is None else env
    home = home_dir(env)
    file_values = read_config(home / "config.toml")
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for row in SETTINGS:
        values[row.name], origin[row.name] = _pick(row, flags, env, file_values)
    _split_host(values, origin)
    return Settings(home=home, origin=origin, **values)


def _pick(
    row: Setting, flags: Mapping[str, Any], env: Mapping[str, str], file_values: Mapping[str, Any]
) -> tuple[Any, str]:
    if flags.get(row.name) is not None:
        return row.checked(flags[row.name]), "flag"
    if row.env in env:
        return _from_environment(row, env, row.env), f"environment ({row.env})"
    if row.name in file_values:
        return file_values[row.name], "config file"
    for alias in row.aliases:
        if alias in env:
            return _from_environment(row, env, alias), f"environment ({alias})"
    return row.default, "default"


def _from_environment(row: Setting, env: Mapping[str, str], variable: str) -> Any:
    try:
        return parse_value(row, env[variable])
    except UsageError as error:
        raise UsageError(error.message, hint=f"the environment says so: correct or unset {variable}") from None


def _split_host(values: dict[str, Any], origin: dict[str, str]) -> None:
    """`LOCALLLM_HOST` may carry scheme and port, as Ollama's does."""
    host = str(values["host"]).strip().removeprefix("http://").rstrip("/")
    name, separator, port = host.rpartition(":")
    if separator and port.isdigit() and (":" not in name or name.startswith("[")):
        host = name
        if origin["port"] != "flag":
            values["port"], origin["port"] = BY_NAME["port"].checked(int(port)), origin["host"]
    if not _HOST.fullmatch(host):
        raise UsageError(f"{values['host']!r} is no address", hint="addresses look like 127.0.0.1:11435")
    values["host"] = host.strip("[]") or "127.0.0.1"
