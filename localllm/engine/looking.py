"""What onlookers ask of an engine between two steps: how much of a prompt is cached, what a page holds. Only reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from localllm.engine.memory import Memory
from localllm.engine.pages import FREE, Link, PagePool
from localllm.engine.sequence import Sequence
from localllm.engine.step import NO_PAGE, PageId
from localllm.wire import Answer, PageAnswer, PageHolder, PageLink, Probe, Probed, Question, Submit

MAX_LINKS = 64
"""Of a chain, those nearest to the page: of a long one nobody reads more."""
_HASH_BYTES = 4


def answer_to(
    question: Question, memory: Memory, sequences: Iterable[Sequence], adapter_of: Callable[[str], int | None]
) -> Answer:
    """`sequences` are all that the engine knows; `adapter_of`: the number of one that is loaded, by its path."""
    if isinstance(question, Probe):
        adapter = adapter_of(question.lora)
        return Probed(question.question_id, 0 if adapter is None else num_cached(question, memory, adapter))
    return page_answer(question.question_id, question.page, memory, [each for each in sequences if each.holding])


def num_cached(question: Probe, memory: Memory, adapter: int = 0) -> int:
    """Tokens of the prompt that a sequence would find computed if it began now."""
    if len(question.prompt) < 2:
        return 0  # the last token is always computed
    submit = Submit(
        request_id="", prompt=question.prompt, cache_salt=question.cache_salt, lora_scale=question.lora_scale
    )
    hit = memory.prefixes.probe(Sequence(0, submit, limit=len(question.prompt), seed=0, rank=0, adapter=adapter))
    return hit.num_pages * memory.page_size if hit else 0


def page_answer(question_id: int, page: int, memory: Memory, holders: list[Sequence]) -> PageAnswer:
    """A page that there is not is a free one."""
    pool = memory.pool
    if not 0 <= page < pool.num_pages:
        return PageAnswer(question_id=question_id, page=page, state=FREE, num_references=0)
    own = PageId(page)
    held = _places(own, holders)
    index, tokens, num_links, links = _as_held(*held[0], own, memory.page_size) if held else _as_kept(own, pool)
    return PageAnswer(
        question_id=question_id,
        page=page,
        state=pool.state(own),
        num_references=pool.num_references(own),
        index=index,
        tokens=list(tokens),
        holders=[PageHolder(sequence.request_id, table.index(own)) for sequence, table in held],
        chain=_named(links, holders),
        num_links=num_links,
    )


def _places(page: PageId, holders: Iterable[Sequence]) -> list[tuple[Sequence, list[PageId]]]:
    """Who holds it, and in which table."""
    return [(each, table) for each in holders for table in _tables(each) if page in table]


def _tables(sequence: Sequence) -> list[list[PageId]]:
    return sequence.holding.tables if sequence.holding else []


_Content = tuple[int, tuple[int, ...], int, list[Link]]
"""Which page of its chain it is, its tokens so far, full pages up to it, and the nearest of those."""


def _as_held(sequence: Sequence, table: list[PageId], page: PageId, page_size: int) -> _Content:
    index, holding = table.index(page), sequence.holding
    assert holding is not None
    end = min((index + 1) * page_size, sequence.num_computed)
    num_links = min(index + 1, holding.num_registered)
    nearest = range(num_links - 1, max(-1, num_links - 1 - MAX_LINKS), -1)
    links = [Link(None if table[each] == NO_PAGE else table[each], holding.chain[each + 1]) for each in nearest]
    return index, tuple(sequence.ids[index * page_size : end]), num_links, links


def _as_kept(page: PageId, pool: PagePool) -> _Content:
    known = pool.content(page)
    return (0, (), 0, []) if known is None else (*known, known[0] + 1, pool.links(page, MAX_LINKS))


def _named(links: list[Link], holders: Iterable[Sequence]) -> list[PageLink]:
    wanted: dict[PageId, list[str]] = {link.page: [] for link in links if link.page is not None}
    for sequence in holders:
        for page in wanted.keys() & {page for table in _tables(sequence) for page in table}:
            wanted[page].append(sequence.request_id)
    return [
        PageLink(link.page, link.chain[:_HASH_BYTES].hex(), [] if link.page is None else wanted[link.page])
        for link in links
    ]
