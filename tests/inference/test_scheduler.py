"""Which sequences run in a step: no model is needed to see it."""

from tunesmith.inference.kv_cache import SMALLEST, KVCache
from tunesmith.inference.scheduler import Scheduler
from tunesmith.inference.sequence import PromptLogprobs, Sequence


def sequence(number: int, num_tokens: int, adapter: str = "", top: int | None = None) -> Sequence:
    given = number, "", adapter, list(range(num_tokens)), None
    return Sequence(*given) if top is None else PromptLogprobs(*given, top)  # type: ignore[arg-type]


def advanced(scheduler: Scheduler) -> list[tuple[int, int]]:
    """(number, rows) of a step, which is then done: what has read its prompt generates a token."""
    parts, preempted = scheduler.schedule()
    assert not preempted
    for one, count in parts:
        assert one.slot is not None
        one.slot.length += count
        if not one.num_uncached():
            one.tokens.append(7)
    return [(one.number, count) for one, count in parts]


def test_a_long_prompt_is_read_beside_those_that_generate():
    scheduler = Scheduler(KVCache(4096), 100_000, step_rows=100)
    for number, num_tokens in ((1, 3), (2, 5)):
        scheduler.join(sequence(number, num_tokens))
    assert advanced(scheduler) == [(1, 3), (2, 5)]
    scheduler.join(sequence(3, 250))
    assert [advanced(scheduler) for _ in range(4)] == [
        [(1, 1), (2, 1), (3, 98)],
        [(1, 1), (2, 1), (3, 98)],
        [(1, 1), (2, 1), (3, 54)],
        [(1, 1), (2, 1), (3, 1)],
    ]


def test_more_sequences_than_rows_all_get_their_token():
    scheduler = Scheduler(KVCache(4096), 100_000, step_rows=2)
    for number in range(5):
        scheduler.join(sequence(number, 1))
    assert advanced(scheduler) == [(number, 1) for number in range(5)]


def test_rows_are_sorted_by_adapter_and_logits_of_prompts_come_in_smaller_parts():
    scheduler = Scheduler(KVCache(4096), 100_000, step_rows=1000)
    for number, adapter in ((1, "b"), (2, ""), (3, "a"), (4, "b")):
        scheduler.join(sequence(number, 4, adapter))
    scheduler.join(sequence(5, 300, "a", top=2))
    assert advanced(scheduler) == [(2, 4), (3, 4), (5, 128), (1, 4), (4, 4)]


def test_the_last_to_join_gives_way_where_the_cache_is_full_and_the_first_never():
    scheduler = Scheduler(KVCache(4096), 3 * SMALLEST, step_rows=1000)
    first, second, third = (sequence(number, SMALLEST - 2) for number in range(3))
    for one in (first, second):
        assert scheduler.has_room(len(one.tokens) + 1)
        scheduler.join(one)
    assert scheduler.has_room(SMALLEST)
    assert not scheduler.has_room(SMALLEST + 1)
    for _ in range(4):
        parts, preempted = scheduler.schedule()
        for one, count in parts:
            assert one.slot is not None
            one.slot.length += count
            one.tokens.append(7)
    assert [one.number for one in preempted] == [second.number]
    assert second.slot is None
    assert len(second.tokens) == SMALLEST + 1  # what was generated stays, to be read again
    assert scheduler.active == [first]
    scheduler.leave(first)
    assert scheduler.cache.reserved_tokens() == 0
    assert scheduler.has_room(100 * SMALLEST)
    scheduler.join(third)
    assert scheduler.active == [third]
