"""Templates that try to get out, to fill the memory or never to end: each is refused soon, and the next one works."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.errors import InvalidRequest, TemplateError
from localllm.tokens.chat import ChatTemplate
from localllm.tokens.renderers import Child
from localllm.tokens.sandbox import MAX_OUTPUT_CHARS, MAX_TEMPLATE_CHARS

MESSAGES = [{"role": "user", "content": "Hi"}]
MAX_WALL_S = 30.0  # for a machine that is busy with other things; a quiet one needs less than a second
MAX_CHILD_BYTES = 600 << 20  # below the limit on its address space

ESCAPES = {
    "class of a string": "{{ ''.__class__ }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "subscripted class": "{{ ''['__class__'] }}",
    "class by attr": "{{ '' | attr('__class__') }}",
    "class by attr of joined parts": "{{ '' | attr(['__cl', 'ass__'] | join) }}",
    "class by attr of hexadecimal escapes": "{{ '' | attr('\\x5f\\x5fclass\\x5f\\x5f') | attr('mro') }}",
    "class through map": "{{ [''] | map(attribute='__class__') | list | first }}",
    "class through sum": "{{ [''] | sum(attribute='__class__', start=0) }}",
    "class through format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "class through format_map": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "class through a stored format": "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "globals of a global": "{{ raise_exception.__globals__ }}",
    "globals of the clock": "{{ strftime_now.__globals__['os'].system('true') }}",
    "globals of the cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "globals of the joiner": "{{ joiner.__init__.__globals__ }}",
    "globals of the namespace": "{{ namespace.__init__.__globals__ }}",
    "globals of lipsum": "{{ lipsum.__globals__['os'] }}",
    "lipsum itself": "{{ lipsum(n=100000) }}",
    "self": "{{ self.__init__.__globals__ }}",
    "self through its private name": "{{ self._TemplateReference__context }}",
    "a macro's function": "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    "a macro's environment": "{% macro m() %}{% endmacro %}{{ m._environment }}",
    "code of a generator": "{{ (messages | map('upper')).gi_frame.f_globals }}",
    "the frame of a generator by attr": "{{ (messages | map('upper')) | attr('gi_frame') | attr('f_back') }}",
    "an undefined's class": "{{ nothing.__class__.__init__.__globals__ }}",
    "the class of dict": "{{ dict.__class__.__mro__ }}",
    "the loop's class": "{% for m in messages %}{{ loop.__class__ }}{% endfor %}",
    "import": "{% import 'os' as os %}{{ os.system('true') }}",
    "from import": "{% from 'os' import system %}{{ system('true') }}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "builtins": "{{ __import__('os').system('true') }}",
    "open": "{{ open('/etc/passwd').read() }}",
    "a changed message": "{% set _ = messages.append(1) %}",
    "a changed role": "{{ messages[0].update({'role': 'system'}) }}",
    "a private name in a namespace": "{% set ns = namespace(__class__=1) %}{{ ns }}",
    "a private name stored later": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
}
SPELLINGS = {
    "class by reversed name": "{{ '' | attr('__ssalc__' | reverse | replace('__ssalc__', '__class__')) }}",
    "class by a replaced name": "{{ '' | attr('xxclassxx' | replace('x', '_')) }}",
    "class by a formatted name": "{{ '' | attr('%sclass%s' | format('__', '__')) }}",
    "class by a concatenated name": "{{ '' | attr('__cla' ~ 'ss__') }}",
    "class by a sliced name": "{{ '' | attr('x__class__x'[1:-1]) }}",
    "class by a lowered name": "{{ '' | attr('__CLASS__' | lower) }}",
    "class by a name from a message": "{{ ''[messages[0]['role'] and '__class__'] }}",
    "class by unicode escapes": "{{ ''['\\u005f\\u005fclass\\u005f\\u005f'] }}",
    "class by a look-alike": "{{ ''.__\uff43lass__ }}",
    "subclasses by map": "{{ [''.__class__] | map('attr', '__subclasses__') | list }}",
    "class by map of attr": "{{ [''] | map('attr', '__class__') | list }}",
    "class by groupby": "{{ [''] | groupby('__class__') }}",
    "class by sort": "{{ ['', 'a'] | sort(attribute='__class__') }}",
    "class by unique": "{{ ['', 'a'] | unique(attribute='__class__.__mro__') | list }}",
    "class by min": "{{ ['', 'a'] | min(attribute='__class__') }}",
    "class by selectattr": "{{ [''] | selectattr('__class__.__base__') | list }}{{ ''.__class__ }}",
    "class by rejectattr": "{{ [''] | rejectattr('__class__.__mro__.x') | list | first | attr('__class__') }}",
    "class by join": "{{ [''] | join(attribute='__class__') }}",
    "format in a macro": "{% macro f(s) %}{{ s.format('') }}{% endmacro %}{{ f('{0.__class__}') }}",
    "format by map": "{{ ['{0.__class__}'] | map('attr', 'format') | first('') }}",
    "format of the clock": "{{ '{0.__globals__}'.format(strftime_now) }}",
    "format of a subscript": "{{ '{0[__class__]}'.format(messages[0].content) }}",
    "format with a conversion": "{{ '{0.__class__!r:>5}'.format('') }}",
    "format in a format": "{{ '{0}'.format('{0.__class__}').format('') }}",
    "the module of a function": "{{ raise_exception.__module__ }}",
    "the code of a function": "{{ raise_exception.__code__.co_consts }}",
    "the code of a macro": "{% macro m() %}{% endmacro %}{{ m._func.__code__ }}",
    "the module of a message's method": "{{ messages[0].items.__self__.__class__ }}",
    "globals through a filter": "{% filter attr('__class__') %}a{% endfilter %}",
    "globals of the loop": "{% for m in messages %}{{ loop._iterator.__class__ }}{% endfor %}",
    "the loop's undefined": "{% for m in messages %}{{ loop._undefined }}{% endfor %}",
    "the caller": "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "varargs of a macro": "{% macro m() %}{{ varargs.__class__ }}{{ kwargs.__class__ }}{% endmacro %}{{ m(1, a=2) }}",
    "environment": "{{ environment.globals }}{{ self._TemplateReference__context.environment }}",
    "the context": "{{ context.exported_vars.__class__ }}",
    "a block's context": "{% block b %}{{ self.b.__globals__ }}{% endblock %}",
    "super": "{% block b %}{{ super.__globals__ }}{% endblock %}",
    "a scoped import": "{% from 'x' import y with context %}",
    "an import that is missing": "{% include ['a', 'b'] ignore missing %}{% include 'a' %}",
    "await": "{{ await messages }}",
    "an asynchronous loop": "{% async for m in messages %}{% endfor %}",
    "translation": "{% trans %}a{% endtrans %}",
    "do": "{% do messages.append(1) %}",
    "debug": "{% debug %}",
    "autoescape": "{% autoescape true %}{{ ''.__class__ }}{% endautoescape %}",
    "a with block": "{% with c = ''.__class__ %}{{ c }}{% endwith %}",
    "a cleared list": "{{ messages.clear() }}",
    "a popped message": "{{ messages.pop() }}",
    "a default of dict": "{{ messages[0].setdefault('x', 1) }}",
    "a namespace of another's class": "{% set ns = namespace({'__init__': 1}) %}{{ ns }}",
    "bytes of a string": "{{ 'a'.encode().__class__ }}",
    "an exception's trace": "{{ (1 / 0).__traceback__ }}",
    "doubled underscores in a set": "{% set __class__ = 1 %}{{ x.__class__ }}{{ ''.__class__ }}",
}
FLOODS = {
    "range without end": "{% for i in range(10**9) %}{% endfor %}",
    "range as a list": "{{ range(10**8) | list | length }}",
    "nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "a multiplied string": "{{ 'a' * 10**10 }}",
    "a multiplied string, number first": "{{ 10**10 * 'a' }}",
    "a multiplied list": "{{ [0] * 10**10 }}",
    "a string multiplied step by step": "{% set ns = namespace(s='a' * 1000000) %}"
    "{% for i in range(99999) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s | length }}",
    "a list added to itself": "{% set ns = namespace(s=[0]) %}"
    "{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s | length }}",
    "a number multiplied step by step": "{% set ns = namespace(n=9999999999) %}"
    "{% for i in range(9999) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "a power": "{{ 9**9**9**9 }}",
    "a power that is folded": "{{ (10**1000)**1000000 }}",
    "a shifted format": "{{ '%999999999d' % 1 }}",
    "a width from outside": "{{ '%*d' % (999999999, 1) }}",
    "a padded format": "{{ '{:>999999999}'.format(1) }}",
    "a nested width": "{{ '{:{}}'.format(1, 999999999) }}",
    "a format by filter": "{{ '%999999999s' | format('a') }}",
    "center": "{{ 'a' | center(999999999) }}",
    "the method center": "{{ 'a'.center(999999999) }}",
    "ljust by keyword": "{{ 'a'.zfill(999999999) }}",
    "expanded tabs": "{{ '\\t\\t'.expandtabs(999999999) }}",
    "indent": "{{ ('a\\n' * 100000) | indent(9999999) }}",
    "tojson indent": "{{ [[1]] | tojson(indent=999999999) }}",
    "a replaced string": "{{ ('a' * 99999).replace('a', 'a' * 99999) | length }}",
    "a joined list": "{{ (['a' * 99999] * 99999) | join | length }}",
    "a joined list by method": "{{ ('a' * 99999).join(['b'] * 99999) | length }}",
    "batches": "{{ [1] | batch(999999999, 0) | list | length }}",
    "slices": "{{ [1] | slice(999999999) | list | length }}",
    "much output": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "one large output": "{{ 'a' * 1048576 }}b",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "a recursive loop": "{% for m in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "a cycler that never ends": "{% set c = cycler('a', 'b') %}"
    "{% for i in range(10**6) %}{{ c.next() * 1000 }}{% endfor %}",
    "calls that call": "{% macro m() %}{{ caller() }}{% endmacro %}"
    "{% macro n() %}{% call m() %}{{ n() }}{% endcall %}{% endmacro %}{{ n() }}",
    "a filter of much text": "{% for i in range(99999) %}{% set x = ('ab ' * 99999) | title | wordcount %}{% endfor %}",
    "urlize": "{% for i in range(9999) %}{% set x = ('www.' * 99999) | urlize %}{% endfor %}",
    "striptags": "{% for i in range(9999) %}{% set x = ('<' * 99999) | striptags %}{% endfor %}",
    "wordwrap": "{% for i in range(9999) %}{% set x = ('a ' * 99999) | wordwrap(1) %}{% endfor %}",
    "an indent step by step": "{% set ns = namespace(s='a\\n') %}{% for i in range(99) %}"
    "{% set ns.s = (ns.s ~ ns.s) | indent(999) %}{% endfor %}",
    "a joiner": "{% set j = joiner('a' * 1000000) %}{% for i in range(99999) %}{{ j() }}{% endfor %}",
    "a list that doubles": "{% set ns = namespace(s=[[]]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}"
    "{% endfor %}{{ ns.s | string | length }}",
    "a list that doubles, as JSON": "{% set ns = namespace(s=[[]]) %}{% for i in range(99) %}"
    "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | tojson }}",
    "kept strings": "{% set ns = namespace(s=[]) %}{% for i in range(9999) %}"
    "{% set ns.s = ns.s + ['a' * 1000000 ~ i] %}{% endfor %}",
    "a clock without end": "{{ strftime_now('%Y' * 100000) }}",
    "a wide clock": "{{ strftime_now('%999999999Y') }}",
    "a macro per call": "{% macro a(n) %}{% for i in range(9) %}{{ a(n + 1) }}{% endfor %}{% endmacro %}{{ a(0) }}",
    "groups": "{% for i in range(99999) %}{% set x = (['ab'] * 99999) | groupby(0) | list %}{% endfor %}",
    "unique": "{% for i in range(99999) %}{% set x = range(99999) | map('string') | unique | list %}{% endfor %}",
    "a sum of lists": "{{ ([[1] * 99999] * 99999) | sum(start=[]) | length }}",
    "text that is escaped again": "{% set ns = namespace(s='<' * 99999) %}{% for i in range(99) %}"
    "{% set ns.s = ns.s | urlencode | urlencode %}{% endfor %}",
    "a translation": "{{ ('a' * 1048576).translate({97: 'b' * 1048576}) | length }}",
    "a sorted product": "{{ range(99999) | list | sort | map('string') | join * 99999 }}",
}
UNPARSEABLE = {
    "deep parentheses": "{{ " + "(" * 50_000 + ")" * 50_000 + " }}",
    "deep lists": "{{ " + "[" * 5_000 + "]" * 5_000 + " }}",
    "deep blocks": "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "a long sum": "{{ 1" + "+1" * 100_000 + " }}",
    "many negations": "{{ " + "not " * 50_000 + "1 }}",
    "a large number": "{{ " + "9" * 100_000 + " }}",
    "too long": "a" * (MAX_TEMPLATE_CHARS + 1),
}

BITS = (
    *(
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        " for m in messages ",
        " endfor ",
        " if ",
        " else ",
        " endif ",
        " set x = ",
        "m",
    ),
    *(
        "messages",
        ".content",
        "[0]",
        "[",
        "]",
        "(",
        ")",
        " | ",
        "join",
        "tojson",
        "length",
        "'a'",
        " ~ ",
        " * ",
        "9",
        "-",
    ),
    *(" macro f(x) ", " endmacro ", "f(1)", " generation ", " endgeneration ", "namespace(a=1)", ".a", " in ", "range"),
    *(
        "raise_exception('no')",
        "strftime_now('%Y')",
        "words",
        "\n",
        "x",
        ":",
        ",",
        "{",
        "}",
        " is defined",
        "loop.index",
    ),
)


@pytest.fixture(scope="module")
def child() -> Iterator[ChatTemplate]:
    """One child for all attacks; it starts anew after each one that ended it."""
    template = ChatTemplate("")
    yield template
    template.close()


def check_works(template: ChatTemplate) -> None:
    template.source = "{{ messages[0].content }}!"
    assert template.render(MESSAGES) == "Hi!"


def check_refused(template: ChatTemplate, source: str) -> str:
    template.source = source
    began = time.monotonic()
    with pytest.raises(InvalidRequest) as caught:
        template.render(MESSAGES)
    assert time.monotonic() - began < MAX_WALL_S
    assert caught.value.param == "messages"
    check_works(template)
    return caught.value.code


def process_of(template: ChatTemplate) -> Any:
    assert isinstance(template._renderer, Child)
    process = template._renderer._process._process
    assert process is not None
    return process


def test_there_are_a_hundred_and_more() -> None:
    assert len({*ESCAPES.values(), *SPELLINGS.values(), *FLOODS.values(), *UNPARSEABLE.values()}) >= 100


@pytest.mark.parametrize("case", ESCAPES)
def test_a_template_cannot_reach_python(case: str, child: ChatTemplate) -> None:
    assert check_refused(child, ESCAPES[case]) == "template_error"


@pytest.mark.parametrize("case", SPELLINGS)
def test_nor_can_it_by_another_spelling(case: str, child: ChatTemplate) -> None:
    """An error of ours, or text in which nothing of Python's shows."""
    for template in (child, ChatTemplate("", isolated=False)):
        template.source = SPELLINGS[case]
        try:
            text = template.render(MESSAGES)
        except TemplateError as error:
            assert error.http_status == 400
        else:
            assert not any(sign in text for sign in ("<class", "<function", "0x", "<built-in", "globals")), text
    check_works(child)


@pytest.mark.parametrize("case", ESCAPES)
def test_a_template_cannot_reach_python_in_this_process(case: str) -> None:
    with pytest.raises(InvalidRequest):
        ChatTemplate(ESCAPES[case], isolated=False).render(MESSAGES)


@pytest.mark.parametrize("case", FLOODS)
def test_a_template_cannot_take_all_time_or_memory(case: str, child: ChatTemplate) -> None:
    assert check_refused(child, FLOODS[case]) == "template_limit"
    assert psutil.Process(process_of(child).pid).memory_info().rss < MAX_CHILD_BYTES


@pytest.mark.parametrize("case", UNPARSEABLE)
def test_a_template_that_is_hard_to_parse_is_given_up(case: str, child: ChatTemplate) -> None:
    check_refused(child, UNPARSEABLE[case])


@pytest.mark.parametrize(
    "case",
    ["range without end", "nested loops", "a multiplied string", "a power", "a macro that calls itself", "center"],
)
def test_the_gauge_stops_a_template_in_this_process(case: str) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidRequest):
        ChatTemplate(FLOODS[case], isolated=False).render(MESSAGES)
    assert time.monotonic() - began < MAX_WALL_S
    assert ChatTemplate("ok", isolated=False).render(MESSAGES) == "ok"


@given(st.lists(st.sampled_from(BITS), max_size=12).map("".join))
def test_any_text_is_a_template_or_an_error_in_words(source: str) -> None:
    template = ChatTemplate(source, isolated=False)
    try:
        assert isinstance(template.render(MESSAGES), str)
    except TemplateError as error:
        assert str(error).startswith("the chat template ")


@pytest.mark.parametrize("is_isolated", [True, False])
def test_output_up_to_the_limit_is_allowed(is_isolated: bool) -> None:
    template = ChatTemplate("{{ messages[0].content }}{{ add_generation_prompt and '' }}", isolated=is_isolated)
    assert len(template.render([{"role": "user", "content": "a" * MAX_OUTPUT_CHARS}])) == MAX_OUTPUT_CHARS
    with pytest.raises(InvalidRequest, match="writes more"):
        template.render([{"role": "user", "content": "a" * (MAX_OUTPUT_CHARS + 1)}])
    template.close()


def test_messages_are_no_templates(child: ChatTemplate) -> None:
    child.source = "{{ messages[0].content }}"
    for text in ESCAPES.values():
        assert child.render([{"role": "user", "content": text}]) == text


def test_a_request_larger_than_any_is_refused(child: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localllm.tokens.frames.MAX_FRAME_BYTES", 10_000)
    child.source = "{{ messages[0].content }}"
    with pytest.raises(InvalidRequest, match="cannot be given"):
        child.render([{"role": "user", "content": "a" * 10_000}])
    check_works(child)


def test_a_killed_child_is_replaced(child: ChatTemplate) -> None:
    check_works(child)
    first = process_of(child)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    check_works(child)
    assert process_of(child).pid != first.pid


def test_a_stopped_child_is_given_up(child: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    check_works(child)
    monkeypatch.setattr("localllm.tokens.renderers._WALL_S", 0.2)
    first = process_of(child)
    os.kill(first.pid, signal.SIGSTOP)
    with pytest.raises(InvalidRequest, match="too long"):
        child.render(MESSAGES)
    monkeypatch.undo()
    assert first.poll() is not None
    check_works(child)


def test_closing_ends_the_child_and_rendering_starts_another() -> None:
    template = ChatTemplate("{{ messages[0].content }}!")
    assert template.render(MESSAGES) == "Hi!"
    first = process_of(template)
    template.close()
    assert first.poll() is not None
    check_works(template)
    template.close()
    template.close()


def test_a_forgotten_template_takes_its_child_along() -> None:
    template = ChatTemplate("{{ messages[0].content }}!")
    check_works(template)
    process = process_of(template)
    del template
    assert process.poll() is not None


def test_the_child_inherits_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALLLM_TEST_SECRET", "swordfish")
    template = ChatTemplate("ok")
    assert template.render(MESSAGES) == "ok"
    assert "LOCALLLM_TEST_SECRET" not in psutil.Process(process_of(template).pid).environ()
    template.close()
