"""Where grammars of strangers are tried out: `python -m localllm.daemon.grammar_child`, frames over pipes.

A grammar is made, then followed for some steps over single bytes: what is too much to follow shows here and not in a
worker. One request, one reply; the end of the input ends the process, and so does too much memory or CPU time.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Iterator
from functools import cache

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark

from localllm.runtime.constraints import parser_limits
from localllm.tokens.frames import read_frame, write_frame
from localllm.tokens.limits import limit_cpu, limit_memory

_CPU_S = 0.5
_STEP_CPU_S = 0.15
_NUM_STEPS = 48
_NUM_BYTES = 256
_EOS = _NUM_BYTES
_FEW_IDS, _MOST_IDS = 512, 1 << 19
_CLOSING = b'"}],:\n0'
"""Bytes that lead on in JSON: a walk that only ever chose at random would stay inside the first string."""


class _Bytes:
    """A vocabulary of the 256 bytes, an end, and as many empty tokens as ids that a grammar may name."""

    eos_token_id = _EOS
    bos_token_id = None
    special_token_ids = (_EOS,)

    def __init__(self, num_ids: int) -> None:
        self.tokens = [*(bytes([byte]) for byte in range(_NUM_BYTES)), b"<eos>", *[b""] * (num_ids - _NUM_BYTES - 1)]

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@cache
def _vocabulary(num_ids: int) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes(num_ids)), eos_token=[_EOS], slices=[])


class _Refused(Exception):
    """The text is a sentence's end for people."""


def main() -> None:
    limit_memory("grammars are checked")
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a stray print must not look like a frame
    _vocabulary(_FEW_IDS)
    write_frame(replies, {"ready": "yes"})
    while (request := read_frame(requests)) is not None:
        limit_cpu(_CPU_S)
        reply = _reply(request["kind"], request["text"])
        limit_cpu(0.0)
        write_frame(replies, reply)


def _reply(kind: str, text: str) -> dict[str, str]:
    try:
        grammar = serialized(kind, text)
        _try_out(grammar)
    except _Refused as refused:
        return {"failure": str(refused)}
    except MemoryError:
        return {"failure": "it needs too much memory"}
    return {"grammar": grammar}


def serialized(kind: str, text: str) -> str:
    """The grammar as llguidance takes it, not yet checked."""
    try:
        match kind:
            case "json_schema":
                return json.dumps({"grammars": [{"json_schema": json.loads(text)}]})
            case "regex":
                return str(LLMatcher.grammar_from_regex(text))
            case "choice":
                options = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in json.loads(text))
                return _of_lark(f"start: {options}\n")
            case "lark":
                return _of_lark(text)
            case "composed":
                return text
            case _:
                return _of_lark(any_to_lark(text))
    except RecursionError as error:
        raise _Refused("it is nested too deeply") from error
    except Exception as error:  # gbnf_to_lark has errors of its own, and others where it meets what it did not expect
        raise _Refused(_sentence(str(error))) from error


def _of_lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def _try_out(grammar: str) -> None:
    grammar = re.sub(r"<\[(\d+)\]>", _small_id, grammar)
    num_ids = _MOST_IDS if re.search(r"<\[[^\]]*[-,^]", grammar) else _FEW_IDS
    matcher = LLMatcher(_vocabulary(num_ids), grammar, log_level=0, limits=parser_limits())
    _check(matcher)
    for preferred in (b"", _CLOSING):
        matcher.reset()
        chooser = random.Random(0)
        for _ in _steps():
            if not _go_on(matcher, preferred, chooser):
                break


def _small_id(found: re.Match[str]) -> str:
    """Another token in place of one that a grammar names, as a vocabulary of all ids would take long to make."""
    return f"<[{_EOS + 1 + int(found[1][-9:]) % (_FEW_IDS - _EOS - 1)}]>"


def _steps() -> Iterator[int]:
    """So many steps, each of which may take so much time of the CPU."""
    for number in range(_NUM_STEPS):
        started = time.process_time()
        yield number
        if time.process_time() - started > _STEP_CPU_S:
            raise _Refused("it takes too much time to follow")


def _go_on(matcher: LLMatcher, preferred: bytes, chooser: random.Random) -> bool:
    """One step on; False at the end."""
    if matcher.is_stopped():
        _check(matcher)
        return False
    mask = matcher.compute_bitmask()
    _check(matcher)
    allowed = _allowed(mask)
    if not allowed:
        raise _Refused("it comes to a point from which nothing may follow")
    liked = [token for token in preferred if token in allowed]
    token = chooser.choice(liked if liked and chooser.random() < 0.7 else allowed)
    if token == _EOS and matcher.is_accepting():
        return False
    matcher.consume_token(token)
    _check(matcher)
    return True


def _allowed(mask: bytes) -> list[int]:
    """The bytes that are allowed, else the ids."""
    head = [token for token in range(_NUM_BYTES + 1) if mask[token // 8] >> token % 8 & 1]
    return head or [8 * place + bit for place, bits in enumerate(mask) if bits for bit in range(8) if bits >> bit & 1]


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise _Refused(_sentence(matcher.get_error()))


def _sentence(message: str) -> str:
    """The first line of a message, without the state that some carry, and what is wrong with an expression."""
    first = message.partition("\n")[0].partition("<state>")[0].strip()[:300]
    reason = re.search(r"^\s*error: (.*)$", message, re.MULTILINE)
    return " ".join([first, *([reason[1][:200]] if reason else [])]).strip() or "it is not understood"


if __name__ == "__main__":
    main()
