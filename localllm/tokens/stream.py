"""Tokens as they come to text that may be shown: whole characters only, and nothing that may become a stop string."""

import codecs
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from localllm.tokens.borders import borders
from localllm.tokens.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one push released. `num_tokens` of the pushed ids count; the others came after the stop string `stop`.

    `token_texts[i]` is what the i-th counted id added to the decoded text (empty for half a character), before stop
    strings are taken away.
    """

    text: str
    num_tokens: int = 0
    token_texts: tuple[str, ...] = ()
    stop: str | None = None


class TokenStream:
    """Incremental decoding of one sequence. All deltas together are `tokenizer.decode` of all ids, up to a stop string.

    Ids in `keep_special` are shown although `skip_special` is set (tags that a markup parser wants to see). The leading
    space of the first word stays in a `continuation` (text completions) and goes otherwise, as in `decode`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special: bool = True,
        keep_special: Collection[int] = (),
        continuation: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._watch = StopWatch(stop, include_stop=include_stop)
        self._hidden = tokenizer.special_ids - frozenset(keep_special) if skip_special else frozenset()
        self._drops_space = tokenizer.built.adds_space_prefix and not continuation
        self.num_tokens = 0

    @property
    def stop(self) -> str | None:
        """The stop string that ended this stream."""
        return self._watch.hit

    def push(self, ids: Sequence[int]) -> TextDelta:
        """Take the next ids. After a stop string nothing is taken any more."""
        released: list[str] = []
        token_texts: list[str] = []
        for token_id in ids:
            if self.stop is not None:
                break
            text = self._decoder.decode(self._bytes_of(token_id))
            token_texts.append(text)
            released.append(self._watch.push(text))
        self.num_tokens += len(token_texts)
        return TextDelta("".join(released), len(token_texts), tuple(token_texts), self.stop)

    def finish(self) -> TextDelta:
        """Release what was held back; half a character becomes U+FFFD."""
        if self.stop is not None:
            return TextDelta("", stop=self.stop)
        text = self._watch.push(self._decoder.decode(b"", final=True))
        if self.stop is None:
            text += self._watch.finish()
        return TextDelta(text, stop=self.stop)

    def _bytes_of(self, token_id: int) -> bytes:
        raw = self._tokenizer.said_bytes(token_id)
        if token_id in self._hidden:
            return b""
        if self._drops_space and raw:
            self._drops_space = False
            return raw.removeprefix(b" ")
        return raw


class StopWatch:
    """Finds the first stop string to be completed in streamed text; if several end together, the longest.

    Knuth-Morris-Pratt, so that the cost per character does not depend on how much is held back.
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        self._stops = sorted({stop for stop in stops if stop}, key=len, reverse=True)
        self._borders = [borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._held = ""
        self._include_stop = include_stop
        self.hit: str | None = None

    def push(self, text: str) -> str:
        """What of the text so far can no longer be part of a stop string."""
        if not self._stops:
            return text
        for place, character in enumerate(text):
            self._advance(character)
            if self.hit is not None:
                return self._cut(self._held + text[: place + 1], self.hit)
        seen = self._held + text
        cut = len(seen) - max(self._matched)
        self._held = seen[cut:]
        return seen[:cut]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> None:
        for index, stop in enumerate(self._stops):
            matched, fallbacks = self._matched[index], self._borders[index]
            while matched and stop[matched] != character:
                matched = fallbacks[matched - 1]
            matched += stop[matched] == character
            self._matched[index] = matched
            if matched == len(stop):
                self.hit = stop
                return

    def _cut(self, seen: str, stop: str) -> str:
        return seen if self._include_stop else seen[: len(seen) - len(stop)]
