import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.errors import StoreError, UsageError
from localllm.store.entry import Entry
from localllm.store.modelfile import PARAMETERS, parse_modelfile, render_modelfile, template_kind

FULL = '''# a comment
from smollm2:135m
PARAMETER temperature 0.7
parameter stop "<|user|>"
PARAMETER stop """<|end|>"""
PARAMETER num_ctx 4096
PARAMETER use_mmap false
PARAMETER mirostat 1
SYSTEM """You are
  a helpful "parrot".
"""
TEMPLATE """{{ if .System }}{{ .System }}{{ end }}
{{ .Prompt }}"""
LICENSE MIT
LICENSE """and
more"""
MESSAGE user Hello "there"
MESSAGE assistant """Hi
you"""
ADAPTER ./lora.gguf
DRAFT tiny:1m
RENDERER qwen3
PARSER qwen3
REQUIRES 0.14.0
'''


def test_every_directive_is_read() -> None:
    model = parse_modelfile(FULL)
    assert model.from_ == ("smollm2:135m",)
    assert model.params == {"temperature": 0.7, "stop": ["<|user|>", "<|end|>"], "num_ctx": 4096, "use_mmap": False}
    assert model.system == 'You are\n  a helpful "parrot".\n'
    assert model.template == "{{ if .System }}{{ .System }}{{ end }}\n{{ .Prompt }}"
    assert model.license == "MIT\nand\nmore"
    assert model.messages == ({"role": "user", "content": 'Hello "there"'}, {"role": "assistant", "content": "Hi\nyou"})
    assert (model.adapters, model.draft, model.renderer) == (("./lora.gguf",), "tiny:1m", "qwen3")
    assert (model.parser, model.requires) == ("qwen3", "0.14.0")
    assert "mirostat" in model.warnings[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_usual_encoding_is_read(encoding: str) -> None:
    assert parse_modelfile("FROM x\r\nSYSTEM grüß".encode(encoding)).system == "grüß"


def test_several_from_lines_are_the_shards_of_one_model() -> None:
    assert parse_modelfile("FROM ./a.gguf\nFROM ./b.gguf").from_ == ("./a.gguf", "./b.gguf")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SYSTEM x", "no FROM line"),
        ("", "no FROM line"),
        (
            "FROM x\nFOO bar",
            '(line 2): command must be one of "from", "license", "template", "system", "adapter", "draft", "renderer",'
            ' "parser", "parameter", "message", or "requires"',
        ),
        ("FROM x\nMESSAGE tool hi", '(line 2): message role must be one of "system", "user", or "assistant"'),
        ("FROM x\n\nPARAMETER heat 3", "(line 3): unknown parameter 'heat'"),
        ("FROM x\nPARAMETER top_k much", "(line 2): the parameter top_k must be a whole number, not 'much'"),
        ('FROM x\nSYSTEM """never', '(line 2): the """ that opens here is never closed'),
        (b"\xff\xfe\x00", "the Modelfile is no text file"),
        (b"FROM \xe9", "the Modelfile is no text file"),
    ],
)
def test_mistakes_name_their_line(text: str | bytes, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_modelfile(text)
    assert raised.value.message == message


def test_the_language_of_a_template_is_told() -> None:
    assert template_kind("{{ if .System }}{{ .System }}{{ end }}{{ .Prompt }}") == "go"
    assert template_kind("{{ range .Messages }}{{ .Content }}{{ end }}") == "go"
    assert template_kind("{% for message in messages %}{{ message.content }}{% endfor %}") == "jinja"
    assert template_kind("{{ messages[0].content }}") == "jinja"
    assert template_kind("") == ""


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=60)
VALUES = {
    "int": st.integers(),
    "float": st.floats(allow_nan=False),
    "bool": st.booleans(),
    "list": st.lists(TEXTS, min_size=1),
}


@given(
    system=TEXTS,
    template=TEXTS,
    messages=st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), TEXTS), max_size=3),
    params=st.fixed_dictionaries({}, optional={name: VALUES[kind] for name, kind in PARAMETERS.items()}),
)
def test_what_is_printed_reads_back_the_same(
    system: str, template: str, messages: list[tuple[str, str]], params: dict[str, object]
) -> None:
    said = tuple({"role": role, "content": text} for role, text in messages)
    entry = Entry(
        name="a:1", path="/x.gguf", source="path", system=system, template=template, messages=said, params=params
    )
    try:
        text = render_modelfile(entry)
    except StoreError:
        texts = [system, template, *(text for _, text in messages), *params.get("stop", [])]  # type: ignore[misc]
        assert any('"""' in item for item in texts)
        return
    model = parse_modelfile(text)
    assert (model.from_, model.system, model.template) == (("/x.gguf",), system, template)
    assert (model.messages, model.params) == (said, params)
