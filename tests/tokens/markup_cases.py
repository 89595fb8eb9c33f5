# ruff: noqa: RUF001 (some tags are spelled with full-width bars)
"""What each family of models writes, and what only looks like it, with the pieces that must come out."""

import json
from collections.abc import Sequence

from localllm.tokens.markup import MarkupParser, MarkupSpec, Piece, ToolFormat
from localllm.tokens.markup.pieces import call_piece

THINK = ("<think>", "</think>")
QWEN = MarkupSpec(THINK, "hermes")
HARMONY = MarkupSpec(is_harmony=True)
GRANITE = MarkupSpec(THINK, "granite", answer=("<response>", "</response>"))
COMMAND = MarkupSpec(
    ("<|START_THINKING|>", "<|END_THINKING|>"), "command", answer=("<|START_RESPONSE|>", "<|END_RESPONSE|>")
)
GEMMA = MarkupSpec(("<|channel>thought\n", "<channel|>"), "gemma4")
TOOL = {
    "type": "function",
    "function": {"name": "find", "parameters": {"properties": {"zip": {"type": "string"}, "n": {"type": "integer"}}}},
}


def of(tools: ToolFormat, *, knows_tools: bool = False) -> MarkupSpec:
    return MarkupSpec(tools=tools).for_tools([TOOL]) if knows_tools else MarkupSpec(tools=tools)


def pieces_of(spec: MarkupSpec, chunks: Sequence[str]) -> list[Piece]:
    parser = MarkupParser(spec)
    return [piece for chunk in chunks for piece in parser.push(chunk)] + parser.finish()


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of one kind as one, and the parts of each call."""
    whole: list[Piece] = []
    for piece in pieces:
        if whole and whole[-1].kind == piece.kind and not piece.name:
            whole[-1] = Piece(piece.kind, whole[-1].text + piece.text, whole[-1].name)
        else:
            whole.append(piece)
    return whole


def parsed(spec: MarkupSpec, chunks: Sequence[str]) -> list[Piece]:
    """All pieces, neighbours joined, arguments in one notation of JSON where they are JSON."""
    return [_plain(piece) if piece.kind == "tool_call" else piece for piece in joined(pieces_of(spec, chunks))]


def _plain(call: Piece) -> Piece:
    try:
        return call_piece(call.name, json.loads(call.text))
    except ValueError:
        return call


def words(text: str) -> Piece:
    return Piece("content", text)


def thoughts(text: str) -> Piece:
    return Piece("reasoning", text)


def find(**arguments: object) -> Piece:
    return Piece("tool_call", json.dumps(arguments, ensure_ascii=False, separators=(",", ":")), "find")


FOUND = find(zip="01234")
JSON_CALL = '{"name": "find", "arguments": {"zip": "01234"}}'
HERMES_CALL = f"<tool_call>\n{JSON_CALL}\n</tool_call>"
TRICKY = 'a </tool_call> "b" \\ } ] <tool_call> \n 猫'
TRICKY_JSON = json.dumps({"name": "find", "arguments": {"zip": TRICKY}}, ensure_ascii=False)
SEP = "<｜tool▁sep｜>"
DEEPSEEK = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"
KIMI = "<|tool_calls_section_begin|>{}<|tool_calls_section_end|>"
KIMI_CALL = '<|tool_call_begin|>functions.find:{}<|tool_call_argument_begin|>{{"zip": "01234"}}<|tool_call_end|>'

CASES: dict[str, list[tuple[MarkupSpec, str, list[Piece]]]] = {
    "text": [
        (QWEN, "Hello <b>you</b> < 3", [words("Hello <b>you</b> < 3")]),
        (QWEN, "trailing space \n", [words("trailing space \n")]),
        (QWEN, "  leading space", [words("  leading space")]),
        (QWEN, "<tool_cal", [words("<tool_cal")]),
        (MarkupSpec(), f"<think>{HERMES_CALL}", [words(f"<think>{HERMES_CALL}")]),
    ],
    "reasoning": [
        (QWEN, "<think>\nhm, a < b\n</think>\n\nSo: yes", [thoughts("hm, a < b"), words("So: yes")]),
        (QWEN, "\n <think></think>\nyes", [words("yes")]),
        (QWEN, "The tag <think> opens it", [words("The tag <think> opens it")]),
        (QWEN, "<think>never ends", [thoughts("never ends")]),
        (QWEN, "<think>a</think>b<think>c</think>", [thoughts("a"), words("b<think>c</think>")]),
        (QWEN, "<thi", [words("<thi")]),
        (QWEN, f"<think>I may {HERMES_CALL} it</think>no", [thoughts(f"I may {HERMES_CALL} it"), words("no")]),
        (MarkupSpec(THINK, starts_in_reasoning=True), "\nso\n</think>\n\nyes", [thoughts("so"), words("yes")]),
        (MarkupSpec(("[THINK]", "[/THINK]"), "mistral"), "[THINK]a[/THINK]b", [thoughts("a"), words("b")]),
        (GRANITE, "<think>a</think><response>b\n</response>\n", [thoughts("a"), words("b")]),
        (GRANITE, "<think>a</think> <response>b</response> c", [thoughts("a"), words("b</response> c")]),
        (GRANITE, "plain </response>", [words("plain </response>")]),
        (GRANITE, "<response>cut</resp", [words("cut</resp")]),
        (COMMAND, "<|START_RESPONSE|>b<|END_RESPONSE|>", [words("b")]),
        (GEMMA, "<|channel>thought\na\n<channel|>b", [thoughts("a"), words("b")]),
        (GEMMA, "b <|channel>thought\na<channel|> c", [words("b"), thoughts("a"), words("c")]),
    ],
    "hermes": [
        (QWEN, HERMES_CALL, [FOUND]),
        (QWEN, f"<think>x</think>Look:\n{HERMES_CALL}\n{HERMES_CALL}", [thoughts("x"), words("Look:"), FOUND, FOUND]),
        (QWEN, f"{HERMES_CALL} and so on", [FOUND, words("and so on")]),
        (QWEN, HERMES_CALL.removesuffix("</tool_call>"), [FOUND]),
        (QWEN, f"<tool_call>{TRICKY_JSON}</tool_call>ok", [find(zip=TRICKY), words("ok")]),
        (QWEN, f"<tool_call>[{JSON_CALL}, {JSON_CALL}]</tool_call>", [FOUND, FOUND]),
        (QWEN, f"<tool_call>{JSON_CALL}\n{JSON_CALL}</tool_call>", [FOUND, FOUND]),
        (QWEN, f"<tool_call><tool_call>{JSON_CALL}</tool_call>", [words("<tool_call>"), FOUND]),
        (QWEN, "<tool_call>not json</tool_call> ok", [words("<tool_call>not json</tool_call> ok")]),
        (QWEN, '<tool_call>{"name": 3}', [words('<tool_call>{"name": 3}')]),
        (QWEN, "<tool_call>[1, 2]</tool_call>", [words("<tool_call>[1, 2]</tool_call>")]),
        (QWEN, f"a <tool_call>{{oops}} {HERMES_CALL}", [words("a <tool_call>{oops}"), FOUND]),
        (QWEN, f'<tool_call>{{"a </tool_call> {HERMES_CALL}', [words('<tool_call>{"a </tool_call>'), FOUND]),
        (QWEN, "`<tool_call>` opens a call", [words("`<tool_call>` opens a call")]),
        (QWEN, "<tool_call> opens a call", [words("<tool_call> opens a call")]),
        (QWEN, '<tool_call>{"name": "find"}</tool_call>', [find()]),
        (QWEN, '<tool_call>{"name": "find", "arguments": "{\\"n\\": 1}"}</tool_call>', [find(n=1)]),
        (QWEN, '<tool_call>{"type": "function", "function": {"name": "find", "arguments": {"n": 1}}}</tool_call>',
         [find(n=1)]),
        (QWEN, '<tool_call>{"name": "find", "arguments": {"n": 1e999}}</tool_call>',
         [Piece("tool_call", '{"n":1e999}', "find")]),
        (QWEN, '<tool_call>{"name": "find", "arguments": {"n": 1}</tool_call>', [find(n=1)]),
        (QWEN, '<tool_call>{"name": "find", "arguments": {"n": 1}} and </tool_call> so',
         [find(n=1), words("and  so")]),
        (QWEN, '<tool_call>{"name": "find", "arguments": {"n": tru e,', [Piece("tool_call", '{"n":tru e,', "find")]),
        (QWEN, '<tool_call>{"name": "find", "arguments": {n: 1}}</tool_call>',
         [words('<tool_call>{"name": "find", "arguments": {n: 1}}</tool_call>')]),
        (QWEN, '<tool_call>{"name": "find", "arguments": {"zip": "a\nb"}}</tool_call>', [find(zip="a\nb")]),
        (QWEN, '<tool_call>{"name": "find", "arguments": {"zip": "\\ud83d\\udc08 é"}}</tool_call>', [find(zip="🐈 é")]),
        (QWEN, '<tool_call>{"name": "find", "arguments": {"zip": "\\ud800"}}</tool_call>',
         [Piece("tool_call", '{"zip":"\\ud800"}', "find")]),
    ],
    "xml": [
        (of("xml", knows_tools=True), "<tool_call>\n<function=find>\n<parameter=zip>\n01234\n</parameter>\n"
         "<parameter=n>\n5\n</parameter>\n</function>\n</tool_call>", [find(zip="01234", n=5)]),
        (of("xml"), "Now:\n<function=find>\n<parameter=zip>\na\nb\n\n</parameter>\n</function>\n</tool_call>\nok",
         [words("Now:"), find(zip="a\nb\n"), words("ok")]),
        (of("xml"), "<tool_call><function=find></function></tool_call>", [find()]),
        (of("xml"), '<tool_call><function=find>{"n": 1}</function></tool_call>', [find(n=1)]),
        (of("xml"), '<tool_call><function=find>{"zip": "</tool_call>"}</function></tool_call>ok',
         [find(zip="</tool_call>"), words("ok")]),
        (of("xml", knows_tools=True), "<tool_call>\n<function=find>\n<parameter=zip>\n</tool_call> </function>\n"
         "</parameter>\n</function>\n</tool_call>", [find(zip="</tool_call> </function>")]),
        (of("xml"), "<tool_call><function=find>\n<parameter=a>\nTrue\n</parameter>\n<parameter=b>\n[1, {}]\n"
         "</parameter>\n<parameter=c>\n[oops\n</parameter>\n</function></tool_call>",
         [find(a=True, b=[1, {}], c="[oops")]),
        (of("xml"), "<tool_call>\n<function=find>\n<parameter=a>\nx\n<parameter=b>\ny\n</parameter>\n</function>\n"
         "</tool_call>", [find(a="x", b="y")]),
        (of("xml"), "<tool_call><function=find>what?</function></tool_call>",
         [words("<tool_call><function=find>what?</function></tool_call>")]),
        (of("xml"), "A stray </tool_call> is text", [words("A stray </tool_call> is text")]),
        (of("xml"), HERMES_CALL, [FOUND]),
    ],
    "glm": [
        (of("glm", knows_tools=True), "<tool_call>find\n<arg_key>zip</arg_key>\n<arg_value>9</arg_value>\n</tool_call>",
         [find(zip="9")]),
        (of("glm"), "Ok<tool_call>find<arg_key>n</arg_key><arg_value>9</arg_value><arg_key>x</arg_key>"
         "<arg_value></tool_call></arg_value></tool_call>", [words("Ok"), find(n=9, x="</tool_call>")]),
        (of("glm"), "<tool_call>find</tool_call>", [find()]),
        (of("glm"), "<tool_call>find<arg_key>n</arg_key></tool_call>",
         [words("<tool_call>find<arg_key>n</arg_key></tool_call>")]),
        (QWEN, "<tool_call>find<arg_key>n</arg_key><arg_value>9</arg_value></tool_call>", [find(n=9)]),
    ],
    "llama3": [
        (of("llama3"), '{"name": "find", "parameters": {"zip": "01234"}}', [FOUND]),
        (of("llama3"), ' {"type": "function", "name": "find", "parameters": {"zip": "01234"}} ', [FOUND]),
        (of("llama3"), '{"name": "find", "parameters": {}}; {"name": "find", "parameters": {"n": 1}}',
         [find(), find(n=1)]),
        (of("llama3"), '{"name": "find", "parameters": {"zip": "}"}} done', [find(zip="}"), words("done")]),
        (of("llama3"), '{"name": "find", "parameters": {}}; done', [find(), words("; done")]),
        (of("llama3"), '<|python_tag|>{"name": "find", "parameters": {"zip": "01234"}}', [FOUND]),
        (of("llama3"), '<|python_tag|>find.call(zip="01234")', [FOUND]),
        (of("llama3"), "<|python_tag|>import os\nprint(1)", [words("<|python_tag|>import os\nprint(1)")]),
        (of("llama3"), '{"just": "json"}', [words('{"just": "json"}')]),
        (of("llama3"), '{"name": "Bob", "age": 5}', [words('{"name": "Bob", "age": 5}')]),
        (of("llama3", knows_tools=True), '{"name": "other", "parameters": {}}',
         [words('{"name": "other", "parameters": {}}')]),
        (of("llama3"), '{"name": "find", "parameters": {', [words('{"name": "find", "parameters": {')]),
        (of("llama3"), "plain {text}", [words("plain {text}")]),
        (of("llama3"), f"Sure: {JSON_CALL}", [words(f"Sure: {JSON_CALL}")]),
        (of("llama3"), "[find(zip='01234'), find()]", [FOUND, find()]),
    ],
    "pythonic": [
        (of("pythonic"), "[find(zip='01234', n=-2), find()]", [find(zip="01234", n=-2), find()]),
        (of("pythonic"), '<|python_start|>[find(zip="01234")]<|python_end|> ok', [FOUND, words("ok")]),
        (of("pythonic"), "[find(a=[1, 2.5, None], b={'k': (True, \"it's\")}, c='\\n\\u00e9')]",
         [find(a=[1, 2.5, None], b={"k": [True, "it's"]}, c="\né")]),
        (of("pythonic"), "[1] is a footnote", [words("[1] is a footnote")]),
        (of("pythonic"), "[see](http://x) it", [words("[see](http://x) it")]),
        (of("pythonic"), "[find(os.system('x'))]", [words("[find(os.system('x'))]")]),
        (of("pythonic", knows_tools=True), "[other(a=1)]", [words("[other(a=1)]")]),
    ],
    "mistral": [
        (of("mistral"), f"[TOOL_CALLS][{JSON_CALL}]", [FOUND]),
        (of("mistral"), f"[TOOL_CALLS] [{JSON_CALL}, {JSON_CALL}] ok", [FOUND, FOUND, words("ok")]),
        (of("mistral"), 'ok[TOOL_CALLS]find[ARGS]{"zip": "01234"}', [words("ok"), FOUND]),
        (of("mistral"), '[TOOL_CALLS]find[ARGS]{"zip": "]}[TOOL_CALLS]"}[TOOL_CALLS]find[ARGS]{}',
         [find(zip="]}[TOOL_CALLS]"), find()]),
        (of("mistral"), '[TOOL_CALLS]find[CALL_ID]abcdef123[ARGS]{"n": 1}', [find(n=1)]),
        (of("mistral"), "[TOOL_CALLS]find[ARGS]{oops}", [words("[TOOL_CALLS]find[ARGS]{oops}")]),
        (of("mistral"), "[TOOL_CALLS] are markers", [words("[TOOL_CALLS] are markers")]),
    ],
    "deepseek": [
        (of("deepseek"), DEEPSEEK.format(f'<｜tool▁call▁begin｜>find{SEP}{{"zip": "01234"}}<｜tool▁call▁end｜>'),
         [FOUND]),
        (of("deepseek"), "Hm." + DEEPSEEK.format(
            f"<｜tool▁call▁begin｜>function{SEP}find\n```json\n" '{"zip": "```"}\n```<｜tool▁call▁end｜>\n'
            f"<｜tool▁call▁begin｜>function{SEP}find\n```json\n" "{}\n```<｜tool▁call▁end｜>"
        ), [words("Hm."), find(zip="```"), find()]),
        (of("deepseek"), f"<｜tool▁call▁begin｜>find{SEP}oops<｜tool▁call▁end｜>",
         [words(f"<｜tool▁call▁begin｜>find{SEP}oops<｜tool▁call▁end｜>")]),
        (of("deepseek"), DEEPSEEK.format(f"<｜tool▁call▁begin｜>find{SEP}oops<｜tool▁call▁end｜>"),
         [words(DEEPSEEK.format(f"<｜tool▁call▁begin｜>find{SEP}oops<｜tool▁call▁end｜>"))]),
        (of("deepseek"), "a <｜tool▁calls▁begin｜>", [words("a <｜tool▁calls▁begin｜>")]),
    ],
    "kimi": [
        (of("kimi"), "Ok " + KIMI.format(KIMI_CALL.format(0) + KIMI_CALL.format(1)) + " so",
         [words("Ok"), FOUND, FOUND, words("so")]),
        (of("kimi"), KIMI.format("<|tool_call_begin|>oops<|tool_call_end|>"),
         [words(KIMI.format("<|tool_call_begin|>oops<|tool_call_end|>"))]),
    ],
    "gemma4": [
        (GEMMA, '<|tool_call>call:find{zip:<|"|>01234<|"|>}<tool_call|>', [FOUND]),
        (GEMMA, '<|tool_call>call:find{a:{k:<|"|>}<tool_call|><|"|>},b:[1,true,<|"|>x<|"|>],c:-2.5,d:C}<tool_call|>ok',
         [find(a={"k": "}<tool_call|>"}, b=[1, True, "x"], c=-2.5, d="C"), words("ok")]),
        (GEMMA, '<|tool_call>call:find{"zip": "01234"}<tool_call|>', [FOUND]),
        (GEMMA, "<|tool_call>call:find{}<tool_call|><|tool_call>call:find{n:1}<tool_call|>", [find(), find(n=1)]),
        (GEMMA, "<|tool_call>find{}<tool_call|>", [words("<|tool_call>find{}<tool_call|>")]),
    ],
    "tool_code": [
        (of("tool_code"), "Ok:\n```tool_code\nprint(find(zip='01234'))\nfind(n=1)\n```",
         [words("Ok:"), FOUND, find(n=1)]),
        (of("tool_code"), "```python\nfind(n=1)\n```", [words("```python\nfind(n=1)\n```")]),
        (of("tool_code"), "```tool_code\nx = 1\n```", [words("```tool_code\nx = 1\n```")]),
    ],
    "granite": [
        (GRANITE, f"<|tool_call|>[{JSON_CALL}]", [FOUND]),
        (GRANITE, f"<think>a</think><tool_call>[{JSON_CALL}]", [thoughts("a"), FOUND]),
        (GRANITE, "<|tool_call|>none", [words("<|tool_call|>none")]),
    ],
    "phi": [
        (of("phi"), f"<|tool_call|>[{JSON_CALL}]<|/tool_call|>", [FOUND]),
        (of("phi"), f"functools[{JSON_CALL}]", [FOUND]),
        (of("phi"), "import functools\nfunctools.reduce()", [words("import functools\nfunctools.reduce()")]),
    ],
    "lfm2": [
        (of("lfm2"), "<|tool_call_start|>[find(zip='01234'), find(n=1)]<|tool_call_end|>Ok.",
         [FOUND, find(n=1), words("Ok.")]),
        (of("lfm2"), "<|tool_call_start|>[find(zip='it's', n=True)]<|tool_call_end|>", [find(zip="it's", n=True)]),
        (of("lfm2"), f"<|tool_call_start|>[{JSON_CALL}]<|tool_call_end|>", [FOUND]),
    ],
    "command": [
        (COMMAND, "<|START_THINKING|>a<|END_THINKING|><|START_ACTION|>[\n"
         '{"tool_call_id": "0", "tool_name": "find", "parameters": {"zip": "01234"}}\n]<|END_ACTION|>',
         [thoughts("a"), FOUND]),
    ],
    "minimax": [
        (of("minimax", knows_tools=True), '<minimax:tool_call>\n<invoke name="find">\n<parameter name="zip">01234'
         '</parameter>\n<parameter name="n">1</parameter>\n</invoke>\n<invoke name="find">\n</invoke>\n'
         "</minimax:tool_call>", [find(zip="01234", n=1), find()]),
    ],
    "minimax with JSON": [
        (
            of("minimax"),
            '<minimax:tool_call><invoke name="find">{"zip": "01234"}</invoke></minimax:tool_call>',
            [FOUND],
        ),
    ],
    "harmony": [
        (HARMONY, "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes<|return|>",
         [thoughts("hm"), words("yes")]),
        (HARMONY, '<|channel|>commentary to=functions.find <|constrain|>json<|message|>{"zip": "01234"}<|call|>',
         [FOUND]),
        (HARMONY, '<|start|>assistant to=functions.find<|channel|>commentary json<|message|>{"zip": "01234"}', [FOUND]),
        (HARMONY, "<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant<|channel|>commentary "
         "to=functions.find<|message|>{}<|call|>", [words("Let me look."), find()]),
        (HARMONY, "<|channel|>commentary to=functions.find<|message|>oops<|call|>", [words("oops")]),
        (HARMONY, "<|channel|>analysis<|message|>cut", [thoughts("cut")]),
        (HARMONY, "<|channel|>ana", []),
        (HARMONY, "<|channel|>final<|message|>a<|end|>b", [words("ab")]),
        (HARMONY, "no channel < 3", [words("no channel < 3")]),
        (HARMONY.for_prompt("<|start|>user<|message|>x<|end|><|start|>assistant"), "no channel", [words("no channel")]),
        (HARMONY.for_prompt("<|start|>assistant<|channel|>final<|message|>It"), " is", [words(" is")]),
        (HARMONY.for_prompt("<|start|>assistant<|channel|>analysis<|message|>I"), " see<|end|>", [thoughts(" see")]),
    ],
}  # fmt: skip
