"""Chat templates: transformers' text byte for byte, and nothing else that a template may want."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from localllm.errors import InvalidRequest
from localllm.tokens import chat
from localllm.tokens.chat import ChatTemplate, default_template
from tests.tokens.worlds import data_folder

MESSAGES = [
    {"role": "user", "content": "Hi <b>there</b> é & ü"},
    {"role": "assistant", "content": "Hello!\n"},
    {"role": "user", "content": "And now?"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Finds <é>",
            "parameters": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
        },
    }
]


class Rooms:
    """Renders a source in the child or in this process; one child serves all tests of the module."""

    def __init__(self) -> None:
        self._child = ChatTemplate("")

    def render(self, source: str, *, isolated: bool, messages: Any = MESSAGES, **variables: Any) -> str:
        template = self._child if isolated else ChatTemplate("", isolated=False)
        template.source = source
        return template.render(messages, **variables)

    def close(self) -> None:
        self._child.close()


@pytest.fixture(scope="module")
def rooms() -> Iterator[Rooms]:
    rooms = Rooms()
    yield rooms
    rooms.close()


in_both = pytest.mark.parametrize("isolated", [True, False], ids=["child", "inside"])


def expected(source: str, tools: Any, messages: Any, variables: Mapping[str, Any]) -> str | None:
    """What transformers renders; None where the template refuses or fails there, too."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    try:
        rendered, _ = utils.render_jinja_template(
            [messages], tools=tools, chat_template=source, add_generation_prompt=True, **variables
        )
    except Exception:
        return None
    return str(rendered[0])


@in_both
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("opening", [[], [{"role": "system", "content": "Be brief."}]], ids=["no-system", "system"])
def test_published_templates_render_as_in_transformers(isolated: bool, tools: Any, opening: Any) -> None:
    files = sorted(data_folder("templates").glob("*.jinja"))
    assert len(files) > 20
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    child = ChatTemplate("", **tokens, isolated=True)
    num_equal = 0
    for file in files:
        source = file.read_text(encoding="utf-8")
        template = child if isolated else ChatTemplate(source, **tokens, isolated=False)
        template.source = source
        wanted = expected(source, tools, [*opening, *MESSAGES], tokens)
        if wanted is None:
            with pytest.raises(InvalidRequest):
                template.render([*opening, *MESSAGES], tools=tools)
            continue
        assert template.render([*opening, *MESSAGES], tools=tools) == wanted, file.name
        num_equal += 1
    child.close()
    assert num_equal > 20


@in_both
@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages | tojson }}", '[{"role": "user", "content": "é<"}]'),
        ("{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}", "x\n"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "é<"),
        ("{% set ns = namespace(n=1) %}{% for m in messages %}{% set ns.n = 5 %}{% endfor %}{{ ns.n }}", "5"),
        ("{{ dict(a=1) | tojson(indent=1) }}", '{\n "a": 1\n}'),
        ("{{ strftime_now('%Y') | int > 2000 }}", "True"),
        ("{{ tools is none }} {{ documents is none }} {{ nothing_said is defined }}", "True True False"),
        ("{{ ' ' * 3 ~ '-' * 2 }}{{ '%05d' % 7 }}{{ '{:>3}'.format('x') }}", "   --00007  x"),
    ],
)
def test_the_conventions_of_transformers_hold(rooms: Rooms, isolated: bool, source: str, text: str) -> None:
    assert rooms.render(source, isolated=isolated, messages=[{"role": "user", "content": "é<"}]) == text


@in_both
def test_a_template_refuses_in_its_own_words(rooms: Rooms, isolated: bool) -> None:
    source = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InvalidRequest, match="refuses these messages: System role not supported"):
        rooms.render(source, isolated=isolated)


@in_both
@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ messages[99].content.x }}", "{{ 1 / 0 }}", "{% include 'x' %}", "{{"]
)
def test_a_template_that_fails_is_an_invalid_request_in_one_line(rooms: Rooms, isolated: bool, source: str) -> None:
    with pytest.raises(InvalidRequest, match="the chat template") as caught:
        rooms.render(source, isolated=isolated)
    assert "\n" not in caught.value.message


# --- what a template may not do

ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ ('' | attr)('__class__') }}",
    "{{ ''['__cl' ~ 'ass__'].mro() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__['os'].system('id') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace.__mro__ }}",
    "{{ dict.__class__.__call__.__globals__ }}",
    "{{ dict.mro() }}",
    "{{ range.__self__.__import__('os') }}",
    "{{ raise_exception.__globals__['__builtins__'] }}",
    "{{ strftime_now.__globals__ }}",
    "{{ strftime_now.__code__.co_consts }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{0.__class__}'.format_map({'0': ''}) }}",
    "{{ ('{0.__cla' ~ 'ss__}') | format('') ~ '{.__class__}'.format(1) }}",
    "{{ '%s'.format.__self__.__class__ }}",
    "{{ ['{0.__class__}'] | map('format', '') | list ~ (['{.__class__}'] | map(attribute='format') | first)(1) }}",
    "{{ [''] | map(attribute='__class__') | list }}",
    "{{ [1] | map('attr', '__class__') | list | first }}",
    "{{ (messages | first).__class__ }}",
    "{{ lipsum.__globals__['os'] }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ config.__class__.__init__.__globals__ }}",
    "{% set ns = namespace(__class__=1) %}{{ ns }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__globals__ }}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{% for m in messages %}{{ loop.__class__.__init__.__globals__ }}{% endfor %}",
    "{{ (1).__class__.__bases__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages.clear() }}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends '/etc/passwd' %}",
    "{{ ''.encode().decode.__self__.__class__ }}",
    "{{ (cycler('a').next).__func__ }}",
    "{{ messages.__getattribute__('append')(1) }}",
    "{% set x = {}.__class__ %}{{ x.__subclasses__() }}",
]
_GIVEN_AWAY = ("class ", "<function", "<module", "subclasses", "builtins", "root:", "uid=", "<frame", "<code")


@in_both
@pytest.mark.parametrize("source", ESCAPES)
def test_an_escape_from_the_sandbox_finds_nothing(rooms: Rooms, isolated: bool, source: str) -> None:
    try:
        text = rooms.render(source, isolated=isolated)
    except InvalidRequest as error:
        text = error.message.partition(":")[0]
    assert not [mark for mark in _GIVEN_AWAY if mark in text], text


GREEDY = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "{% set x = 'x' * 10**12 %}",
    "{{ ('x' * 1000000 * 1000 * 1000) | length }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:>9999999999}'.format('x') }}",
    "{{ 'x'.rjust(9999999999) | length }}",
    "{{ 'x' | center(9999999999) }}",
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% set ns = namespace(s='xx') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s='xx') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{% for i in range(10 ** 9) %}{% endfor %}",
    "{{ '{:>{}}'.format('x', 9999999999) }}",
    "{{ ('x' * 99999).replace('x', 'y' * 99999) | length }}",
    "{{ ('x' * 99999) | replace('x', 'y' * 99999) | length }}",
    "{{ ('x' * 99999).join(['y'] * 99999) | length }}",
    "{{ (['y'] * 99999) | join('x' * 99999) | length }}",
]


@pytest.mark.parametrize("source", GREEDY)
def test_the_child_ends_what_wants_too_much_and_the_next_rendering_works(rooms: Rooms, source: str) -> None:
    started = time.monotonic()
    with pytest.raises(InvalidRequest):
        rooms.render(source, isolated=True)
    assert time.monotonic() - started < 15
    assert rooms.render("{{ messages | length }}", isolated=True) == "3"


@pytest.mark.parametrize("source", GREEDY)
def test_inside_this_process_the_gauge_stops_what_wants_too_much(rooms: Rooms, source: str) -> None:
    with pytest.raises(InvalidRequest):
        rooms.render(source, isolated=False)


def test_a_child_that_was_ended_from_outside_is_replaced() -> None:
    template = ChatTemplate("{{ messages | length }}")
    assert template.render(MESSAGES) == "3"
    child = template._renderer._process  # type: ignore[union-attr]  # it is isolated
    assert child is not None
    child.kill()
    child.wait()
    assert template.render(MESSAGES) == "3"
    template.close()


def test_a_child_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_WALL_S", 0.0)
    template = ChatTemplate("x")
    with pytest.raises(InvalidRequest, match="did not start"):
        template.render(MESSAGES)


def test_the_child_sees_neither_our_environment_nor_our_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "jinja2.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "secret")
    template = ChatTemplate("{{ messages | length }}")
    assert template.render(MESSAGES) == "3"
    child = template._renderer._process  # type: ignore[union-attr]  # it is isolated
    assert child is not None
    environment = f"/proc/{child.pid}/environ"
    try:
        with open(environment, "rb") as file:
            assert b"secret" not in file.read()
    except FileNotFoundError:
        pytest.skip("this system has no /proc")
    finally:
        template.close()


# --- variables and defaults


@in_both
def test_allowed_variables_reach_the_template(rooms: Rooms, isolated: bool) -> None:
    assert rooms.render("{{ enable_thinking }}", isolated=isolated, enable_thinking=False) == "False"


@pytest.mark.parametrize("name", ["messages_", "bos_token", "tokenize", "strftime_now", "__class__"])
def test_other_variables_are_refused_by_name(rooms: Rooms, name: str) -> None:
    with pytest.raises(InvalidRequest, match=name) as caught:
        rooms.render("", isolated=True, **{name: 1})
    assert caught.value.param == "chat_template_kwargs"


@in_both
def test_objects_do_not_reach_the_template(rooms: Rooms, isolated: bool) -> None:
    with pytest.raises(InvalidRequest, match="cannot be given"):
        rooms.render("", isolated=isolated, messages=[{"role": "user", "content": object()}])
    assert rooms.render("still here", isolated=isolated) == "still here"


def test_reasoning_is_given_under_the_names_templates_use(rooms: Rooms) -> None:
    message = {"role": "assistant", "content": "", "reasoning": "hm"}
    source = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}"
    assert rooms.render(source, isolated=False, messages=[message]) == "hm hm"


def test_a_model_without_template_gets_chatml_if_it_knows_the_marks() -> None:
    template = default_template(["<|im_start|>", "<|im_end|>"], isolated=False)
    assert template.render(MESSAGES[2:]) == "<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
    assert "ChatML" in template.note


def test_a_model_without_template_and_marks_gets_plain_lines() -> None:
    template = default_template(["a"], bos_token="<s>", isolated=False)
    assert template.render(MESSAGES[2:]) == "<s>user: And now?\nassistant:"
    assert template.render(MESSAGES[2:], add_generation_prompt=False) == "<s>user: And now?\n"
    assert "plain" in template.note
