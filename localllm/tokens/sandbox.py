"""The jinja2 environment that chat templates see: transformers' conventions inside an immutable sandbox.

Runs in the render child, or in this process with a `Fuel` gauge. Refuses underscored names and boundless results.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import wraps
from typing import Any, Literal, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT_CHARS = 1 << 20
MAX_TEMPLATE_CHARS = 1 << 20
_MAX_REPEAT = 1 << 20
_MAX_NUMBER = 10**15
_MAX_LENGTH = 1 << 24
_MAX_GROWTH = 1 << 28
_SIZED = (str, bytes, list, tuple)
_WIDTH_FROM_OUTSIDE = re.compile(r"%[-+ #0]*(\*|\d*\.\*)|:[^{}]*\{[^{}]*\}")
_MAX_CLOCK_CHARS = 100
_WIDE_CLOCK = re.compile(r"%[-_0^#+]*\d{3}")


FailureKind = Literal["error", "refused", "limit"]


class TemplateFailure(Exception):
    """A template could not be rendered; the text is a sentence for people.

    `kind`: its author refuses the messages, it breaks a limit, or anything else.
    """

    def __init__(self, sentence: str, kind: FailureKind = "error") -> None:
        super().__init__(sentence)
        self.kind = kind


class TooMuch(SecurityError):
    """One operation would make something without measure."""


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; here it only groups."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as an instance's set)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], args[1:]
        attributes = dict(*given, **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


class _Generator(CodeGenerator):
    """Lets `~` pass through the environment, as the sandbox lets the other operators."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    """Also measures what one operation could make: repetition, joining, powers, padding."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def concatenated(self, parts: tuple[Any, ...]) -> str:
        _check_length(sum(len(part) for part in parts if isinstance(part, str)))
        return str_join(parts)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        return None if wrapped is None else _measured(wrapped, pattern=value.__self__)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            _check_power(left, right)
        elif operator == "*":
            _check_product(left, right)
        elif operator == "+":
            _check_length(sum(len(side) for side in (left, right) if isinstance(side, _SIZED)))
        elif isinstance(left, str | bytes):
            _check_widths(left)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(callee, "__self__", None)
        if isinstance(owner, str | bytes):
            _check_widths(owner)
            _check_paddings(args)
            _check_growth((owner, *args))
        return super().call(context, callee, *args, **kwargs)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """At once: jinja2 would let the name pass as undefined until it is used."""
        raise SecurityError(f"it may not read {attribute!r} of {type(obj).__name__!r}")


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a template may not store {name!r}")


def _check_length(length: int) -> None:
    if length > _MAX_LENGTH:
        raise TooMuch("a template may not build something that long")


def _check_growth(parts: tuple[Any, ...]) -> None:
    """`replace` and `join` put one of the parts into another, as often as that is long."""
    sizes = sorted((len(part) for part in parts if isinstance(part, _SIZED)), reverse=True)
    if len(sizes) > 1 and sizes[0] * sizes[1] > _MAX_GROWTH:
        raise TooMuch("a template may not build something that long")


def _check_power(left: Any, right: Any) -> None:
    if not all(isinstance(value, int | float) and abs(value) <= 1024 for value in (left, right)):
        raise TooMuch("a template may not raise to such a power")


def _check_product(left: Any, right: Any) -> None:
    for sequence, factor in ((left, right), (right, left)):
        if isinstance(sequence, str | bytes | list | tuple) and isinstance(factor, int):
            if len(sequence) * factor > _MAX_REPEAT:
                raise TooMuch("a template may not repeat something that often")
        elif isinstance(sequence, int) and abs(sequence) > _MAX_NUMBER:
            raise TooMuch("a template may not calculate with such numbers")


def _check_widths(pattern: str | bytes) -> None:
    """Formats such as `%999999999d` and `{:>999999999}` would fill the memory; so would `*`, a width from outside."""
    if isinstance(pattern, str) and _WIDTH_FROM_OUTSIDE.search(pattern):
        raise TooMuch("a template may not pad that far")
    digits = 0
    for character in pattern if isinstance(pattern, str) else pattern.decode("latin-1"):
        digits = digits + 1 if character.isdigit() else 0
        if digits > 6 and ("%" in pattern if isinstance(pattern, str) else b"%" in pattern):
            raise TooMuch("a template may not pad that far")
        if digits > 6 and isinstance(pattern, str) and "{" in pattern and ":" in pattern:
            raise TooMuch("a template may not pad that far")


def _check_paddings(args: tuple[Any, ...]) -> None:
    if any(isinstance(argument, int) and argument > _MAX_REPEAT for argument in args):
        raise TooMuch("a template may not pad that far")


class _Refusal(jinja2.TemplateError):
    """`raise_exception`: the author's own words."""


def _raise_exception(message: object) -> NoReturn:
    raise _Refusal(str(message))


def clock_at(now: datetime) -> Callable[[str], str]:
    """`strftime_now` of a moment."""

    def strftime_now(pattern: str) -> str:
        if len(pattern) > _MAX_CLOCK_CHARS or _WIDE_CLOCK.search(pattern):
            raise TooMuch("a template may not write such a date")
        return now.strftime(pattern)

    return strftime_now


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Dict:
    """`dict(...)` without the type, whose attributes lead elsewhere."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def template_environment() -> jinja2.Environment:
    """As transformers configures it: trimmed blocks, loop controls, generation tag, plain tojson."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    for name in ("center", "indent", "format", "wordwrap", "pprint", "tojson", "slice", "batch", "replace", "join"):
        environment.filters[name] = _measured(environment.filters[name])
    environment.globals.pop("lipsum")
    environment.globals.update(raise_exception=_raise_exception, dict=_Dict(), namespace=_Namespace)
    return environment


def _measured(function: Callable[..., Any], *, pattern: str = "") -> Callable[..., Any]:
    """A function that could pad or multiply refuses to do so without measure."""

    @wraps(function)  # jinja2 keeps notes on its filters, such as that one wants the environment
    def measured(*args: Any, **kwargs: Any) -> Any:
        given = (pattern, *args, *kwargs.values())
        _check_paddings(given)
        _check_growth(given)
        for text in given:
            if isinstance(text, str):
                _check_widths(text)
        return function(*args, **kwargs)

    return measured


def compile_template(environment: jinja2.Environment, source: str) -> jinja2.Template:
    """Raises TemplateFailure for a template that is too long or does not parse."""
    if len(source) > MAX_TEMPLATE_CHARS:
        raise TemplateFailure(f"the chat template has {len(source)} characters, more than any real one", "limit")
    try:
        return environment.from_string(source)
    except (RecursionError, MemoryError) as error:
        raise TemplateFailure("the chat template does not parse: it nests too deeply", "limit") from error
    except (jinja2.TemplateError, ValueError, OverflowError, SyntaxError) as error:
        raise TemplateFailure(f"the chat template does not parse: {_sentence(error)}") from error


def render_template(template: jinja2.Template, variables: Mapping[str, Any], now: datetime) -> str:
    """Render with a limit on the output's length. Whatever a template raises is a TemplateFailure.

    `now` is what the template's clock (`strftime_now`) shows.
    """
    pieces: list[str] = []
    size = 0
    try:
        for piece in template.generate({"strftime_now": clock_at(now), **variables}):
            size += len(piece)
            if size > MAX_OUTPUT_CHARS:
                raise TemplateFailure(f"the chat template writes more than {MAX_OUTPUT_CHARS} characters", "limit")
            pieces.append(piece)
    except TemplateFailure:
        raise
    except Exception as error:  # templates run arbitrary expressions, so any exception may come out of them
        raise _failure(error) from error
    return "".join(pieces)


def _failure(error: Exception) -> TemplateFailure:
    said, kind = _sentence(error), type(error).__name__
    if isinstance(error, MemoryError):
        return TemplateFailure("the chat template needs too much memory", "limit")
    if isinstance(error, RecursionError | OverflowError | TooMuch):
        return TemplateFailure(f"the chat template does more than templates may: {said}", "limit")
    if isinstance(error, SecurityError):
        return TemplateFailure(f"the chat template does what templates may not: {said}")
    if isinstance(error, _Refusal):
        return TemplateFailure(f"the chat template refuses these messages: {said}", "refused")
    return TemplateFailure(f"the chat template fails on these messages: {kind}: {said}")


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
