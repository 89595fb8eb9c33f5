"""The page pool: every page is in one state, a prefix is found by its tokens, and nothing is lost."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from localllm.engine.pages import PagePool
from localllm.engine.step import PageId

TOKENS = (1, 2, 3, 4)


def pool_of(num_pages: int) -> PagePool:
    return PagePool(num_pages, len(TOKENS))


def known_page(pool: PagePool, tokens: tuple[int, ...] = TOKENS, group: int = 0) -> PageId:
    page = pool.allocate()
    pool.register(page, group, pool.extend(pool.root("", 0), tokens), tokens)
    return page


def found(pool: PagePool, tokens: tuple[int, ...] = TOKENS, group: int = 0) -> PageId | None:
    return pool.find(group, pool.extend(pool.root("", 0), tokens), tokens)


def test_a_shared_page_is_freed_only_by_its_last_owner() -> None:
    pool = pool_of(2)
    page = pool.allocate()
    pool.share(page)
    pool.release(page)
    assert pool.num_available == 1
    pool.release(page)
    assert pool.num_available == 2
    pool.check()


def test_the_map_names_free_cached_owned_and_shared_pages() -> None:
    pool = pool_of(4)
    cached, owned, shared = known_page(pool), pool.allocate(), pool.allocate()
    pool.release(cached)
    pool.share(shared)
    states = pool.page_bytes_map()
    assert [states[cached], states[owned], states[shared]] == [1, 2, 3]
    assert states.count(0) == 1


def test_a_released_prefix_is_found_again_and_an_unknown_one_is_not() -> None:
    pool = pool_of(2)
    page = known_page(pool)
    pool.release(page)
    assert found(pool) == page
    assert found(pool, (1, 2, 3, 5)) is None
    assert found(pool, group=1) is None


def test_a_hash_that_fits_other_tokens_is_no_hit() -> None:
    pool = pool_of(2)
    known_page(pool)
    assert pool.find(0, pool.extend(pool.root("", 0), TOKENS), (9, 9, 9, 9)) is None


def test_salt_adapter_and_earlier_tokens_all_change_the_chain() -> None:
    pool = pool_of(1)
    chains = {pool.extend(pool.root(salt, adapter), TOKENS) for salt in ("", "a") for adapter in (0, 1)}
    chains.add(pool.extend(pool.extend(pool.root("", 0), TOKENS), TOKENS))
    assert len(chains) == 5


def test_two_processes_name_the_same_tokens_differently() -> None:
    one, other = pool_of(1), pool_of(1)
    assert one.extend(one.root("", 0), TOKENS) != other.extend(other.root("", 0), TOKENS)


def test_the_least_recently_used_cached_page_is_taken_first() -> None:
    pool = pool_of(3)
    pages = [known_page(pool, (n, n, n, n)) for n in range(3)]
    for page in pages:
        pool.release(page)
    pool.share(pages[0])
    pool.release(pages[0])
    assert [pool.allocate() for _ in range(3)] == [pages[1], pages[2], pages[0]]
    assert found(pool, (0, 0, 0, 0)) is None
    pool.check()


def test_free_pages_are_taken_before_cached_ones() -> None:
    pool = pool_of(2)
    cached = known_page(pool)
    pool.release(cached)
    assert pool.allocate() != cached


def test_an_empty_pool_gives_nothing() -> None:
    pool = pool_of(1)
    pool.allocate()
    with pytest.raises(IndexError):
        pool.allocate()


def test_of_two_pages_with_the_same_tokens_the_first_stays_findable() -> None:
    pool = pool_of(2)
    first, second = known_page(pool), known_page(pool)
    assert found(pool) == first
    pool.release(second)
    assert pool.page_bytes_map()[second] == 0
    pool.check()


def test_releasing_too_often_is_noticed() -> None:
    pool = pool_of(1)
    page = pool.allocate()
    pool.release(page)
    with pytest.raises(AssertionError, match="more often"):
        pool.release(page)


def test_check_notices_a_holder_that_nobody_knows() -> None:
    pool = pool_of(2)
    page = pool.allocate()
    pool.check_holders([page])
    with pytest.raises(AssertionError):
        pool.check_holders([])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_content_is_found_exactly_while_it_was_not_evicted(writes: list[tuple[int, int]]) -> None:
    pool = pool_of(3)
    model: dict[tuple[int, int], PageId] = {}
    for token, group in writes:
        tokens = (token,) * 4
        if found(pool, tokens, group) is None:
            page = known_page(pool, tokens, group)
            model = {key: other for key, other in model.items() if other != page} | {(token, group): page}
            pool.release(page)
        for (known, its_group), page in model.items():
            assert found(pool, (known,) * 4, its_group) == page
        pool.check()


class PoolMachine(RuleBasedStateMachine):
    """Any order of taking, sharing, naming and giving back, with all invariants after every step."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(6, 4)
        self.holders: list[PageId] = []

    @precondition(lambda self: self.pool.num_available)
    @rule(target=held)
    def take(self) -> PageId:
        page = self.pool.allocate()
        self.holders.append(page)
        return page

    @rule(target=held, page=held)
    def share(self, page: PageId) -> PageId:
        self.pool.share(page)
        self.holders.append(page)
        return page

    @rule(page=consumes(held))
    def give_back(self, page: PageId) -> None:
        self.pool.release(page)
        self.holders.remove(page)

    @rule(page=held, token=st.integers(0, 3), group=st.integers(0, 1))
    def name(self, page: PageId, token: int, group: int) -> None:
        self.pool.register(page, group, self.pool.extend(self.pool.root("", 0), (token,) * 4), (token,) * 4)

    @rule(target=held, token=st.integers(0, 3), group=st.integers(0, 1))
    def hit(self, token: int, group: int) -> Any:
        page = found(self.pool, (token,) * 4, group)
        if page is None:
            return multiple()
        self.pool.share(page)
        self.holders.append(page)
        return page

    @invariant()
    def nothing_is_lost(self) -> None:
        self.pool.check()
        self.pool.check_holders(self.holders)


TestPool = PoolMachine.TestCase
