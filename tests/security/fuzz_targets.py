"""What is fuzzed, and what counts as surviving: a target takes bytes from anybody and may only end in an error of ours.

`scripts/fuzz` runs them for long, guided by coverage; test_fuzz_short.py for seconds.
"""

import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from localllm.errors import BadModelFile, LocalLLMError, UnsupportedModel
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.safetensors import SafetensorsFolder
from localllm.server.asks import chat_asks, completion_asks
from localllm.server.fields import ChatRequest, CompletionRequest, parse
from localllm.server.json_text import decoded_object
from localllm.settings import load_settings
from localllm.tokens.chat import ChatTemplate
from tests.daemon.toy import VOCAB_SIZE, toy_entry, toy_text
from tests.formats.test_gguf_hostile import ALL_CASES

MESSAGES = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
BODY: Mapping[type[Any], dict[str, Any]] = {
    ChatRequest: {"model": "toy:1b", "messages": MESSAGES},
    CompletionRequest: {"model": "toy:1b", "prompt": "x"},
}
FIELDS: Mapping[type[Any], list[str]] = {
    kind: sorted(field.encode_name for field in msgspec.structs.fields(kind)) for kind in BODY
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "pattern": "("}}, "required": ["a"]}
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 16, 17, 2**31, 2**63, -(2**63), 2**64, 0.0, 0.5, 1.0, -0.0, 1e-300, 1e308, -1e308,
    "", "x", "\x00", "\ud7ff", "x" * 300, "{", "(", "[a-z]+", "root ::= 'a'", "none", "auto", "required", "high", "10",
    [], [1], [-1], [[1, 2]], ["x"], [""], [None], ["x"] * 20, [[]], [1.5], {}, {"1": 1}, {"1": -101}, {"x": 1},
    {"-1": 1}, {"include_usage": True}, {"type": "json_object"}, {"type": "text"}, {"type": "json_schema"},
    {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, SCHEMA, TOOLS, TOOLS * 2, TOOLS[0],
    {"type": "function", "function": {"name": "f"}}, {"effort": "low"}, {"regex": "a"}, {"choice": ["a", ""]},
    {"enable_thinking": False}, {"messages": []}, {"self": 1}, {"tokenize": True}, {"__class__": 1},
    [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "t"}]}],
    [{"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function", "function": {}}]}],
    [{"role": "assistant", "content": "a"}], [{"role": "tool", "content": "r", "tool_call_id": "a"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9"}}]}],
)  # fmt: skip
WORDS: Mapping[str, tuple[str, ...]] = {
    "gguf": ("general.alignment", "general.architecture", "split.count", "tokenizer.ggml.tokens"),
    "safetensors": (
        '"dtype":"', "F32", "BF16", "F16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "F6_E2M3", "C64", '"shape":[',
        '"data_offsets":[', '"__metadata__":{', "0,0", "18446744073709551615", "-1", "null", "true", "[]", "{}", "\n",
    ),
    "template": (
        "{{", "}}", "{%", "%}", "{#", "#}", "for m in messages", "endfor", "if ", "elif ", "else", "endif", "set ns",
        "endset", "macro f(x)", "endmacro", "call", "endcall", "filter", "endfilter", "generation", "endgeneration",
        "namespace(a=1)", "loop.index", "recursive", "range(9)", "messages", "tools", "content", "raise_exception(",
        "strftime_now(", "cycler(", "joiner(", "dict(", "|tojson", "|map(", "|select(", "|selectattr(", "|groupby(",
        "|attr(", "|format(", "|batch(", "|indent(", "|join", "|sum", "|sort", "|unique", "|items", ".format(",
        "__class__", " is ", " not ", " in ", "~", "**", "//", "import", "include", "extends", "block", "break",
    ),
    "body": (
        '"messages":', '"role":', '"content":', '"tools":', '"tool_choice":', '"response_format":', '"json_schema":',
        '"guided_regex":', '"grammar":', '"logit_bias":', '"stop":', '"n":', '"prompt":', '"best_of":', '"echo":',
        '"suffix":', '"stream":true', '"stream_options":', '"logprobs":', '"seed":', '"max_tokens":', '"top_p":',
        '"chat_template_kwargs":', '"reasoning_effort":', '"tool_calls":', '"name":', '"user"', '"assistant"',
        '"tool"', '"system"', "null", "true", "-1", "1e308", "9223372036854775808", "[]", "{}", "\\ud800", "\\u0000",
    ),
}  # fmt: skip
"""What each target's inputs are made of: a dictionary for the fuzzer."""


class Survivors:
    """The targets, with what they need once. `home` holds a file that is written again and again."""

    def __init__(self, home: Path) -> None:
        self._file = home / "fuzzed"
        self._settings = load_settings({"LOCALLLM_HOME": str(home)})
        self._entry = toy_entry("toy:1b")
        self._text = toy_text(self._entry)

    def gguf(self, data: bytes) -> None:
        self._file.write_bytes(data)
        try:
            with GGUFFile.open(self._file) as file:
                assert all(file.metadata[name] is not None for name in file.metadata)
                for name, tensor in file.tensors.items():
                    assert name and len(file.raw(name)) == tensor.size_bytes
        except (BadModelFile, UnsupportedModel):
            pass

    def safetensors(self, data: bytes) -> None:
        """A file; or, where it begins as JSON, its header up to a line's end and its data: no length to guess."""
        if data[:1] == b"{":
            header, _, rest = data.partition(b"\n")
            data = len(header).to_bytes(8, "little") + header + rest
        path = self._file.with_suffix(".safetensors")
        path.write_bytes(data)
        try:
            with SafetensorsFolder.open(path) as folder:
                for name, tensor in folder.tensors.items():
                    self._read(folder, name, tensor.size_bytes)
        except (BadModelFile, UnsupportedModel):
            pass

    def _read(self, folder: SafetensorsFolder, name: str, size_bytes: int) -> None:
        try:
            assert folder.array(name).nbytes == size_bytes
            folder.as_float32(name)
        except UnsupportedModel:  # a type that is listed and not read: the other tensors still are
            pass

    def template(self, data: bytes) -> None:
        """In this process, where coverage is seen, under the gauge; tests/tokens holds the child to its limits."""
        try:
            template = ChatTemplate(data.decode("utf-8", errors="replace"), isolated=False)
            assert isinstance(template.render(MESSAGES, tools=TOOLS), str)
        except LocalLLMError as error:
            assert error.http_status < 500, error

    def body(self, data: bytes) -> None:
        """As chat and as plain completion, up to the sequences that would run. What is no JSON from its first byte on
        chooses fields and values instead: bytes at random hardly ever are JSON."""
        for kind, make in ((ChatRequest, chat_asks), (CompletionRequest, completion_asks)):
            try:
                decoded = decoded_object(data) if data[:1] == b"{" else _chosen(data, kind)
                wanted: Any = parse(decoded, kind)
                make(wanted, self._entry, self._text, self._settings, VOCAB_SIZE)
            except LocalLLMError as error:
                assert error.http_status < 500, error

    def targets(self) -> Mapping[str, Callable[[bytes], None]]:
        return {"gguf": self.gguf, "safetensors": self.safetensors, "template": self.template, "body": self.body}


def _chosen(data: bytes, kind: type[Any]) -> dict[str, Any]:
    """Two bytes for each field: which, and with what in it."""
    fields, body = FIELDS[kind], BODY[kind]
    pairs = zip(data[::2], data[1::2], strict=False)
    return body | {fields[which % len(fields)]: VALUES[what % len(VALUES)] for which, what in pairs}


def seeds(target: str) -> list[bytes]:
    """Small sound inputs, made here: what is guided by coverage grows from them."""
    if target == "gguf":
        return [_gguf(), *(content for content, _ in ALL_CASES.values() if len(content) < 4096)]
    if target == "safetensors":
        return _safetensors()
    if target == "template":
        return [each.encode() for each in _templates()]
    chat = {"model": "toy:1b", "messages": MESSAGES, "temperature": 0.5, "stop": ["x"], "logit_bias": {"1": 2}, "n": 2}
    formed = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    text = {"model": "toy:1b", "prompt": ["a", "b"], "logprobs": 1, "echo": True, "best_of": 3, "suffix": "c"}
    return [
        *(
            msgspec.json.encode(each)
            for each in (chat, chat | {"tools": TOOLS}, chat | {"response_format": formed}, text)
        ),
        *(bytes((which, what)) for which in range(90) for what in range(0, len(VALUES), 7)),
    ]


def _gguf() -> bytes:
    import gguf
    import numpy

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "x.gguf")
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint32("llama.context_length", 512)
        writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
        writer.add_tensor("w", numpy.zeros((2, 32), dtype=numpy.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return Path(path).read_bytes()


def _safetensors() -> list[bytes]:
    """Every type, odd shapes, metadata; as whole files and as a header whose length the target adds."""
    types = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "C64": 8, "U32": 4}
    shapes: tuple[tuple[int, ...], ...] = ((2, 3), (), (0, 4), (1, 1, 1, 2))
    made = []
    for shape in shapes:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, size in types.items():
            begin, end = end, end + size * math.prod(shape)
            header[f"model.{name}.weight"] = {"dtype": name, "shape": shape, "data_offsets": [begin, end]}
        made.append((msgspec.json.encode(header), bytes(range(256)) * (end // 256) + bytes(end % 256)))
    small = {"a": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}}
    made.append((msgspec.json.encode(small), bytes(4)))
    return [
        *(len(header).to_bytes(8, "little") + header + data for header, data in made),
        *(header + b"\n" + data for header, data in made),
    ]


def _templates() -> list[str]:
    """The constructs that published templates are made of."""
    return [
        "{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}{% endfor %}",
        "{% set ns = namespace(a=0) %}{% if tools %}{{ tools | tojson(2) }}{% endif %}{{ raise_exception('x') }}",
        "{%- macro f(x, y='a') -%}{{ x ~ y }}{%- endmacro -%}{{ f(1) }}{% call(z) f(2) %}{{ z }}{% endcall %}",
        "{% for m in messages[::-1] if m.role != 'system' %}{{ loop.index0 }}{% else %}none{% endfor %}",
        "{% set x %}a{% endset %}{% generation %}{{ x * 3 }}{% endgeneration %}{{ strftime_now('%d %b %Y') }}",
        "{{ messages | map(attribute='content') | join }}{{ messages | selectattr('role', 'equalto', 'user') | list }}",
        "{% for k, v in {'a': 1}.items() %}{% if v is number %}{{ '%s:%d' | format(k, v) }}{% break %}{% endif %}"
        "{% endfor %}",
        "{% filter upper %}a{% endfilter %}{{ [3, 1] | sort | first }}{{ 'a-b'.split('-')[-1] }}{{ x is defined }}",
        "{% for m in [[1, [2]]] recursive %}{{ loop(m) if m is iterable }}{% endfor %}{{ cycler('a', 'b').next() }}",
        "{{ '{:>4}'.format(3) }}{{ 'abc' | replace('b', 'c') | indent(2) }}{{ range(3) | batch(2) | list }}",
    ]
