"""Schemas and grammars made to take time or memory: each is to be refused, or accepted, within a second."""

from collections.abc import Callable
from typing import Any

from localllm.daemon.grammars import (
    Draft,
    choice_grammar,
    gbnf_grammar,
    json_schema_grammar,
    lark_grammar,
    regex_grammar,
)


def deep(depth: int, key: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {key: {"a": schema} if key == "properties" else schema}
    return schema


def every_way(depth: int) -> dict[str, Any]:
    """Each level allows the next one by a name, by a pattern and by default."""
    schema: dict[str, Any] = {"type": "integer"}
    for level in range(depth):
        names = {f"p{level}": schema}
        schema = {"type": "object", "properties": names, "additionalProperties": {"$ref": "#"}}
    return schema


def doubling(levels: int) -> dict[str, Any]:
    """Definitions that each use the next one twice: 2**levels when they are written out."""
    below = {
        f"d{level}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{level + 1}"}] * 2, "minItems": 2}
        for level in range(levels)
    }
    return {"$defs": {**below, f"d{levels}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


def all_of(count: int) -> dict[str, Any]:
    return {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {"type": "integer"}}} for j in range(count)]}
                      for i in range(count)]}  # fmt: skip


def string(**words: Any) -> dict[str, Any]:
    return {"type": "string", **words}


def array(**words: Any) -> dict[str, Any]:
    return {"type": "array", **words}


_SCHEMAS: dict[str, Callable[[], Any]] = {
    "nested to the limit": lambda: deep(15, "properties"),
    "nested far beyond": lambda: deep(5000, "items"),
    "a huge enum": lambda: {"enum": [f"value number {number}" for number in range(1900)]},
    "an enum beyond the limit": lambda: {"enum": list(range(100_000))},
    "an enum of objects": lambda: {"enum": [{"a": number, "b": [number]} for number in range(450)]},
    "a thousand properties": lambda: {"properties": {f"p{number}": {} for number in range(900)}},
    "a thousand required properties": lambda: {
        "properties": {f"p{number}": {"type": "integer"} for number in range(450)},
        "required": [f"p{number}" for number in range(450)],
    },
    "a product of counts in a pattern": lambda: string(pattern="^(a{1000}){1000}$"),
    "a tower of counts": lambda: string(pattern="^(((a{1,99}){1,99}){1,99}){1,99}$"),
    "an exponential pattern": lambda: string(pattern="(a|b)*a(a|b){60}"),
    "nested stars": lambda: string(pattern="^((((a*)*)*)*)*$"),
    "a quadratic pattern": lambda: string(pattern="^(.*a){40}$"),
    "many alternatives": lambda: string(pattern="|".join(f"{n:03}.*{n:03}" for n in range(100))),
    "a wide class counted": lambda: string(pattern=r"^(\w{1,200}\s){100}$"),
    "patterns that meet": lambda: {"allOf": [string(pattern=f"^.*{c}.*$") for c in "abcdefghijkl"]},
    "a recursion without an end": lambda: {"$ref": "#"},
    "two that refer to each other": lambda: {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a",
    },
    "a recursive union": lambda: {"anyOf": [{"$ref": "#"}, {"$ref": "#"}, {"type": "array", "items": {"$ref": "#"}}]},
    "a recursive intersection": lambda: {"allOf": [{"$ref": "#"}, {"type": "object"}]},
    "definitions that double": lambda: doubling(30),
    "additional properties at every level": lambda: every_way(12),
    "overlapping pattern properties": lambda: {"patternProperties": {f"^a*b{{{n}}}": {} for n in range(60)}},
    "intersections of unions": lambda: all_of(10),
    "a giant minLength": lambda: string(minLength=10**9),
    "a giant maxLength": lambda: string(minLength=10**5, maxLength=10**7),
    "a pattern and a giant length": lambda: string(pattern="^(ab|a|b)*$", minLength=10**6),
    "giant maxItems": lambda: array(maxItems=10**9),
    "giant minItems": lambda: array(minItems=10**6, items={"type": "integer"}),
    "giant nested maxItems": lambda: array(maxItems=999, items=array(maxItems=999, items=array(maxItems=999))),
    "giant minProperties": lambda: {"type": "object", "minProperties": 10**9},
    "far bounds": lambda: {"type": "number", "minimum": 1e-300, "maximum": 1e300},
    "a bound of 400 digits": lambda: {"type": "integer", "minimum": 10**400},
    "multiples of a large prime": lambda: {"type": "integer", "multipleOf": 999_999_937},
    "multiples of very little": lambda: {"type": "number", "multipleOf": 1e-12},
}  # fmt: skip

_GRAMMARS: dict[str, Callable[[], Draft]] = {
    "regex: a product of counts": lambda: regex_grammar("(a{1000}){1000}"),
    "regex: exponential": lambda: regex_grammar("(a|b)*a(a|b){100}"),
    "regex: nested groups": lambda: regex_grammar("(" * 500 + ")" * 500),
    "regex: many quantifiers": lambda: regex_grammar("(.{0,99}x){0,99}" * 20),
    "choice: a thousand": lambda: choice_grammar([f"{'x' * 40}{number}" for number in range(1000)]),
    "lark: ambiguous": lambda: lark_grammar('start: start start | "a" | ""'),
    "lark: left and right": lambda: lark_grammar("start: e\ne: e e e e | e e | /a*/ | /a+/"),
    "lark: a million times": lambda: lark_grammar('start: ("a" "b"){1000000}'),
    "lark: counts of counts": lambda: lark_grammar('start: x{1000}\nx: y{1000}\ny: "a"{1000}'),
    "lark: nested": lambda: lark_grammar("start: " + "(" * 60_000),
    "lark: many rules": lambda: lark_grammar(
        "start: r0\n" + "".join(f"r{n}: r{n + 1} | r{n + 1}\n" for n in range(3000)) + 'r3000: "a"'
    ),
    "lark: wide rows": lambda: lark_grammar("start: " + " | ".join(f"/a{{0,{n}}}b/" for n in range(1, 3000))),
    "lark: a bad schema inside": lambda: lark_grammar('start: %json {"type": "string", "pattern": "(a{1000}){1000}"}'),
    "gbnf: nested": lambda: gbnf_grammar("root ::= " + "(" * 60_000),
    "gbnf: counts": lambda: gbnf_grammar('root ::= (("a"{1,9999}){1,9999}){1,9999}'),
    "gbnf: a rule of itself": lambda: gbnf_grammar("root ::= root root | root"),
}  # fmt: skip

EXPLOSIVE: dict[str, Callable[[], Draft]] = {
    **{name: (lambda make=make: json_schema_grammar(make())) for name, make in _SCHEMAS.items()},  # type: ignore[misc]
    **_GRAMMARS,
}
