"""Scheduling of sequences into steps, without a model."""

from tunesmith.inference.kv_cache import SMALLEST, KVCache
from tunesmith.inference.scheduler import Scheduler
from tunesmith.inference.sequence import PromptLogprobs, Sequence


def sequence(number: int, num_tokens: int, adapter: str = "", top: int | None = None) -> Sequence:
    arguments = number, "", adapter, list(range(num_tokens)), None
    return Sequence(*arguments) if top is None else PromptLogprobs(*arguments, top)  # type: ignore[arg-type]


def run_step(scheduler: Scheduler) -> list[tuple[int, int]]:
    """Run a step: (number, rows) of each sequence. Sequences whose prompt is complete generate a token."""
    parts, preempted = scheduler.schedule()
    assert not preempted
    for one, count in parts:
        assert one.slot is not None
        one.slot.length += count
        if not one.num_uncached():
            one.tokens.append(7)
    return [(one.number, count) for one, count in parts]


def test_a_long_prompt_is_prefilled_in_chunks_while_others_generate():
    scheduler = Scheduler(KVCache(4096), 100_000, step_rows=100)
    for number, num_tokens in ((1, 3), (2, 5)):
        scheduler.join(sequence(number, num_tokens))
    assert run_step(scheduler) == [(1, 3), (2, 5)]
    scheduler.join(sequence(3, 250))
    assert [run_step(scheduler) for _ in range(4)] == [
        [(1, 1), (2, 1), (3, 98)],
        [(1, 1), (2, 1), (3, 98)],
        [(1, 1), (2, 1), (3, 54)],
        [(1, 1), (2, 1), (3, 1)],
    ]


def test_every_sequence_gets_its_token_even_beyond_the_row_limit():
    scheduler = Scheduler(KVCache(4096), 100_000, step_rows=2)
    for number in range(5):
        scheduler.join(sequence(number, 1))
    assert run_step(scheduler) == [(number, 1) for number in range(5)]


def test_rows_are_sorted_by_adapter_and_prompt_logprobs_use_smaller_parts():
    scheduler = Scheduler(KVCache(4096), 100_000, step_rows=1000)
    for number, adapter in ((1, "b"), (2, ""), (3, "a"), (4, "b")):
        scheduler.join(sequence(number, 4, adapter))
    scheduler.join(sequence(5, 300, "a", top=2))
    assert run_step(scheduler) == [(2, 4), (3, 4), (5, 128), (1, 4), (4, 4)]


def test_a_full_cache_preempts_the_newest_sequence_but_never_the_first():
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
    assert len(second.tokens) == SMALLEST + 1  # generated tokens are kept for recomputation
    assert scheduler.active == [first]
    scheduler.leave(first)
    assert scheduler.cache.reserved_tokens() == 0
    assert scheduler.has_room(100 * SMALLEST)
    scheduler.join(third)
    assert scheduler.active == [third]
