"""Labels are embedded once, by their prompts, for all who ask for them."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from alignserve_server.batching.label_cache import LabelCache
from alignserve_server.errors import InferenceFailed, ServingError, TextTooLong
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.model.zero_shot import LabelSet
from alignserve_server.observability.batch_observer import MetricsObserver

from tests.unit.fakes import settle


class Prompts:
    """Embeds prompts as `FakeEncoder` does, at a length of their own; waits and fails on demand."""

    def __init__(self) -> None:
        self.chunks: list[list[str]] = []
        self.flows: list[object] = []  # one for each chunk
        self.gate = asyncio.Event()
        self.gate.set()
        self.invalid: set[str] = set()
        self.failing: set[str] = set()
        self.error: Exception | None = None
        self.cancelled = 0

    @property
    def asked(self) -> list[str]:
        return [prompt for chunk in self.chunks for prompt in chunk]

    async def __call__(self, prompts: Sequence[str], flow: object) -> list[np.ndarray | ServingError]:
        self.chunks.append(list(prompts))
        self.flows.append(flow)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await settle()  # in the engine too, it takes a few rounds of the loop until work is undone
            raise
        if self.error is not None:
            raise self.error
        return [self._answer(prompt) for prompt in prompts]

    async def release_chunk(self) -> None:
        """Lets the chunk that waits go on, and those behind it wait."""
        self.gate.set()
        self.gate.clear()
        await settle()

    def _answer(self, prompt: str) -> np.ndarray | ServingError:
        if prompt in self.invalid:
            return TextTooLong("too long")
        if prompt in self.failing:
            return InferenceFailed("the model failed on this text")
        return len(prompt) * _direction(prompt)


def _direction(prompt: str) -> np.ndarray:
    return FakeEncoder().embedding_of(prompt)


@pytest.fixture
def prompts() -> Prompts:
    return Prompts()


@pytest.fixture
def cache(prompts: Prompts, observer: MetricsObserver) -> LabelCache:
    return LabelCache(100, prompts, observer, prompts_at_once=64)


@pytest.fixture
def one_by_one(prompts: Prompts, observer: MetricsObserver) -> LabelCache:
    """A cache that embeds one prompt at a time."""
    return LabelCache(100, prompts, observer, prompts_at_once=1)


async def _start(
    cache: LabelCache, *labels: str, flow: str | None = None
) -> asyncio.Task[tuple[np.ndarray, int]]:
    """Starts to embed labels and comes back when that waits for the encoder."""
    task = asyncio.create_task(cache.embed(LabelSet.of(labels, []), flow))
    await settle()
    return task


async def _leave(task: asyncio.Task[object]) -> None:
    """Cancels a call, as gRPC does when its client is gone."""
    task.cancel()
    await asyncio.wait([task])
    await settle()


async def _hits(cache: LabelCache, *labels: str) -> int:
    _, hits = await cache.embed(LabelSet.of(labels, []))
    return hits


async def test_labels_come_out_in_order_and_of_length_one(cache):
    """Each row belongs to the label at its position, whatever length the encoder gave it."""
    embeddings, hits = await cache.embed(LabelSet.of(["cat", "a dog", "cat"], []))

    np.testing.assert_allclose(
        embeddings, [_direction(label) for label in ("cat", "a dog", "cat")], atol=1e-6
    )
    assert hits == 0


async def test_prompts_are_averaged_by_direction(cache):
    """A prompt with a longer embedding weighs no more than another; the average has length 1."""
    embeddings, _ = await cache.embed(LabelSet.of(["cat"], ["{label}", "a much longer photo of a {label}"]))

    expected = _direction("cat") + _direction("a much longer photo of a cat")
    np.testing.assert_allclose(embeddings, [expected / np.linalg.norm(expected)], atol=1e-6)


async def test_invalid_labels_are_named_by_position(cache, prompts):
    """One bad prompt makes its label invalid; every place where it stands is named."""
    prompts.invalid = {"bad, twice"}

    with pytest.raises(TextTooLong) as refused:
        await cache.embed(LabelSet.of(["a", "bad", "c", "bad"], ["{label}", "{label}, twice"]))

    assert [violation.field for violation in refused.value.violations] == ["labels[1]", "labels[3]"]


async def test_the_valid_neighbours_of_an_invalid_label_are_kept(cache, prompts):
    """Whoever repairs the request pays for the repaired label alone."""
    prompts.invalid = {"bad"}
    with pytest.raises(TextTooLong):
        await cache.embed(LabelSet.of(["a", "bad", "c"], []))

    prompts.invalid = set()

    assert await _hits(cache, "a", "bad", "c") == 2


async def test_a_known_label_is_not_embedded_again(cache, prompts):
    """Only what is missing goes to the encoder, and what is at hand comes out the same."""
    first, _ = await cache.embed(LabelSet.of(["a", "b"], []))

    second, hits = await cache.embed(LabelSet.of(["b", "c", "a"], []))

    assert hits == 2
    assert prompts.asked == ["a", "b", "c"]
    np.testing.assert_array_equal(second[[2, 0]], first)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", []), ("b", [])),
        (("a", ["one {label}"]), ("a", ["two {label}"])),
        (("a", ["{label}"]), ("a", ["{label}", "{label}!"])),
        (("ab", ["c{label}"]), ("a", ["bc{label}"])),
        (("a", ["{label}b", "{label}"]), ("a", ["{label}", "b{label}"])),
    ],
    ids=["labels", "templates", "number of templates", "label and template", "two templates"],
)
async def test_different_prompts_are_kept_apart(cache, one, other):
    """Neither another label nor other templates are taken for one that is known."""
    await cache.embed(LabelSet.of([one[0]], one[1]))

    _, hits = await cache.embed(LabelSet.of([other[0]], other[1]))

    assert hits == 0


async def test_all_labels_of_a_call_are_in_the_cache_or_it_has_to_ask(cache, prompts, metrics):
    """Then they come at once, in order, and count as hits; otherwise nothing is counted yet."""
    embeddings, _ = await cache.embed(LabelSet.of(["a", "b"], []))

    all_cached, one_missing = (cache.cached(LabelSet.of(labels, [])) for labels in ("ba", "bac"))

    np.testing.assert_array_equal(all_cached, embeddings[[1, 0]])
    assert one_missing is None
    assert metrics.registry.get_sample_value("alignserve_label_cache_hits_total") == 2


async def test_the_least_recently_used_goes_first(prompts, observer):
    """A full cache forgets the label that nobody asked for the longest."""
    cache = LabelCache(2, prompts, observer, prompts_at_once=64)
    await cache.embed(LabelSet.of(["a", "b"], []))
    await cache.embed(LabelSet.of(["a"], []))

    await cache.embed(LabelSet.of(["c"], []))

    assert await _hits(cache, "a", "c") == 2
    assert await _hits(cache, "b") == 0


async def test_more_labels_than_the_cache_holds_are_answered(prompts, observer, metrics):
    """The bound is on what is kept, not on what a request may ask."""
    cache = LabelCache(1, prompts, observer, prompts_at_once=64)

    embeddings, _ = await cache.embed(LabelSet.of(["a", "b", "c"], []))

    assert len(embeddings) == 3
    assert metrics.registry.get_sample_value("alignserve_label_cache_entries") == 1


async def test_hits_misses_and_shared_work_are_counted(cache, prompts, metrics):
    """Each label of a request, one that is sent twice too, counts as exactly one of the three."""
    await cache.embed(LabelSet.of(["a", "b", "b"], []))

    await cache.embed(LabelSet.of(["a", "c"], []))

    counts = {
        kind: metrics.registry.get_sample_value(f"alignserve_label_cache_{kind}_total")
        for kind in ("hits", "misses", "coalesced")
    }
    assert counts == {"hits": 1, "misses": 3, "coalesced": 1}
    assert prompts.asked == ["a", "b", "c"]


@pytest.fixture
def held(prompts: Prompts) -> Prompts:
    """Prompts that wait until the gate is set."""
    prompts.gate.clear()
    return prompts


async def test_a_label_under_way_is_not_embedded_twice(cache, held):
    """The second call asks only for what nobody has asked for yet; both get their answers."""
    first, second = await _start(cache, "a", "b"), await _start(cache, "b", "c")

    held.gate.set()
    (from_first, _), (from_second, hits) = await first, await second

    assert held.asked == ["a", "b", "c"]
    np.testing.assert_array_equal(from_first[1], from_second[0])
    assert hits == 0


async def test_an_error_reaches_everybody_who_waits(cache, held):
    """No call is left waiting for an answer that never comes."""
    tasks = [await _start(cache, "a", "b"), await _start(cache, "b")]
    held.error = InferenceFailed("the model failed")

    held.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(answer) for answer in answers] == [InferenceFailed] * 2
    assert answers[0] is not answers[1]  # or each would hold the frames of both


async def test_a_call_whose_own_turns_fail_waits_for_nobody_elses(observer):
    """Or it would wait for ever when those who embed the rest leave; they get their own answers."""
    turns: dict[str, asyncio.Future[None]] = {}

    async def embed(prompts: Sequence[str], flow: str) -> list[np.ndarray]:
        turns[flow] = asyncio.get_running_loop().create_future()
        await turns[flow]
        return [_direction(prompt) for prompt in prompts]

    cache = LabelCache(100, embed, observer, prompts_at_once=1)
    other, failing = await _start(cache, "b", "c", flow="x"), await _start(cache, "a", "b", "c", flow="y")

    turns["y"].set_exception(InferenceFailed("the model failed"))
    await settle()

    assert isinstance(failing.exception(), InferenceFailed)
    for _ in "bc":
        turns["x"].set_result(None)
        await settle()
    embeddings, _ = await other
    np.testing.assert_allclose(embeddings, [_direction("b"), _direction("c")], atol=1e-6)


async def test_a_prompt_that_fails_fails_only_its_label(cache, held):
    """A stranger who shares another label of the call gets it; the caller learns of the failure."""
    held.failing = {"poison, twice"}
    embed = cache.embed(LabelSet.of(["cat", "poison"], ["{label}", "{label}, twice"]))
    poisoned = asyncio.create_task(embed)
    await settle()
    stranger = asyncio.create_task(cache.embed(LabelSet.of(["cat"], ["{label}", "{label}, twice"])))
    await settle()

    held.gate.set()
    answers = await asyncio.gather(poisoned, stranger, return_exceptions=True)

    assert isinstance(answers[0], InferenceFailed)
    assert not isinstance(answers[1], BaseException)
    assert len(answers[1][0]) == 1
    assert held.asked == ["cat", "cat, twice", "poison", "poison, twice"]


async def test_a_label_is_ready_before_its_neighbours(one_by_one, held):
    """Whoever shares one label of a large call does not wait for all of it."""
    large, small = await _start(one_by_one, "a", "b", "c"), await _start(one_by_one, "a")

    await held.release_chunk()

    assert small.done()
    assert not large.done()
    assert await _hits(one_by_one, "a") == 1
    await _leave(large)


async def test_prompts_behind_a_bad_one_of_the_same_label_are_not_embedded(one_by_one, prompts):
    """The label is lost anyway; the next one goes on."""
    prompts.invalid = {"1 bad"}

    with pytest.raises(TextTooLong):
        await one_by_one.embed(LabelSet.of(["bad", "good"], ["1 {label}", "2 {label}"]))

    assert prompts.asked == ["1 bad", "1 good", "2 good"]


async def test_prompts_are_embedded_in_chunks(prompts, observer):
    """A chunk takes prompts of several labels, and the last may be smaller."""
    cache = LabelCache(100, prompts, observer, prompts_at_once=3)

    await cache.embed(LabelSet.of(["a", "b"], ["1 {label}", "2 {label}"]))

    assert prompts.chunks == [["1 a", "2 a", "1 b"], ["2 b"]]


async def test_prompts_are_written_only_when_it_is_their_turn(cache, held):
    """Labels times templates never lie in memory at once: here they would be 40 MB."""
    labels = [f"{i} {'l' * 2_000}" for i in range(100)]
    templates = [f"{i} {'t' * 2_000} {{label}}" for i in range(100)]
    tracemalloc.start()

    task = asyncio.create_task(cache.embed(LabelSet.of(labels, templates)))
    await settle()
    _, peak_bytes = tracemalloc.get_traced_memory()

    tracemalloc.stop()
    assert len(held.asked) == 64
    assert peak_bytes < 2_000_000
    await _leave(task)


async def test_an_error_is_not_kept(cache, held):
    """The next call for the label tries again."""
    held.gate.set()
    held.error = InferenceFailed("the model failed")
    with pytest.raises(InferenceFailed):
        await cache.embed(LabelSet.of(["a"], []))

    held.error = None
    embeddings, _ = await cache.embed(LabelSet.of(["a"], []))

    np.testing.assert_allclose(embeddings, [_direction("a")], atol=1e-6)


async def test_a_first_caller_who_leaves_takes_nothing_from_the_others(cache, held):
    """The work that it began goes on for whoever waits for a part of it."""
    first, second = await _start(cache, "a", "b"), await _start(cache, "b")

    first.cancel()
    await settle()
    held.gate.set()
    embeddings, _ = await second

    np.testing.assert_allclose(embeddings, [_direction("b")], atol=1e-6)
    assert held.cancelled == 0


async def test_the_work_ends_when_the_last_caller_leaves(cache, held):
    """Nothing is embedded for nobody."""
    tasks = [await _start(cache, "a"), await _start(cache, "a")]

    for task in tasks:
        task.cancel()
    await settle()

    assert held.cancelled == 1


async def test_who_shares_a_part_keeps_only_that_work_going(one_by_one, held):
    """The rest of a call that was left is not even begun."""
    large, small = await _start(one_by_one, "a", "b", "c"), await _start(one_by_one, "a")

    await _leave(large)
    assert held.cancelled == 0
    await held.release_chunk()

    assert small.done()
    assert held.asked == ["a"]


async def test_who_waits_for_two_calls_labels_cancels_neither_of_theirs(cache, held):
    """Of the work that a call shares with others, leaving ends what no other waits for."""
    first, second = await _start(cache, "a"), await _start(cache, "b")
    both = await _start(cache, "a", "b", "c")

    await _leave(both)
    held.gate.set()
    await asyncio.gather(first, second)

    assert held.cancelled == 1
    assert held.asked == ["a", "b", "c"]


async def test_who_comes_as_the_last_one_leaves_starts_anew(cache, held):
    """Nobody waits for work that is being cancelled."""
    leaving = await _start(cache, "a")

    leaving.cancel()
    await asyncio.wait([leaving])
    coming = await _start(cache, "a")
    held.gate.set()
    embeddings, _ = await coming

    np.testing.assert_allclose(embeddings, [_direction("a")], atol=1e-6)
    assert held.asked == ["a", "a"]


async def test_a_label_that_another_call_has_not_begun_is_begun_at_once(one_by_one, held):
    """Whoever shares the last label of a large call does not wait for those before it."""
    large = await _start(one_by_one, "a", "b", "c", flow="large")

    small = await _start(one_by_one, "c", flow="small")
    await held.release_chunk()

    assert small.done()
    assert (held.asked[:2], held.flows[:2]) == (["a", "c"], ["large", "small"])
    assert not large.done()
    await _leave(large)


async def test_a_label_that_another_call_of_the_caller_has_begun_is_not_begun_again(one_by_one, held):
    """Within one caller's work nothing is done twice, whichever call comes to it first."""
    first = await _start(one_by_one, "a", "b", "c")
    second = await _start(one_by_one, "c")

    held.gate.set()
    await asyncio.gather(first, second)

    assert held.asked == ["a", "c", "b"]


async def test_a_label_that_another_caller_has_begun_is_settled_by_the_first_turn(cache, held):
    """Nobody waits for the turns of somebody else, who may have to wait for long."""
    slow = await _start(cache, "a", flow="slow")
    slow_gate, held.gate = held.gate, asyncio.Event()

    fast = await _start(cache, "a", flow="fast")
    held.gate.set()
    embeddings, _ = await fast
    await settle()

    np.testing.assert_array_equal((await slow)[0], embeddings)
    assert held.flows == ["slow", "fast"]
    assert not slow_gate.is_set()


async def test_what_nobody_has_begun_comes_before_what_others_have(one_by_one, held):
    """Two callers with the same labels share the work rather than do it side by side."""
    calls = [await _start(one_by_one, *"abcd", flow=flow) for flow in ("one", "other")]

    while not all(call.done() for call in calls):
        await held.release_chunk()

    assert sorted(held.asked[:4]) == [*"abcd"]


async def test_a_caller_who_leaves_takes_along_its_turns_alone(one_by_one, held):
    """Another who wants the same label still has it, at its own turn."""
    leaving = await _start(one_by_one, "a", flow="leaving")
    staying = await _start(one_by_one, "a", flow="staying")

    await _leave(leaving)
    cancelled = held.cancelled
    held.gate.set()
    await staying

    assert cancelled == 1


async def test_each_waiter_has_an_error_of_its_own(cache, held):
    """It has never been raised before, so it leads to nobody else's frames."""
    held.failing = {"a"}
    tasks = [await _start(cache, "a") for _ in range(2)]
    held.gate.set()

    one, other = await asyncio.gather(*tasks, return_exceptions=True)

    assert one is not other
    assert (type(one), str(one)) == (type(other), str(other))


async def test_a_label_that_another_caller_began_and_left_is_begun_in_the_end(one_by_one, held):
    """Who put it off, since it was under way, does not wait for ever."""
    leaving = await _start(one_by_one, "a", flow="leaving")
    staying = await _start(one_by_one, "a", "b", flow="staying")

    await _leave(leaving)
    held.gate.set()
    await staying

    assert held.asked == ["a", "b", "a"]


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_comes_and_leaves_every_call_is_answered(prompts, observer, seed):
    """Callers share labels, leave at any time, and labels fail; nobody waits for ever, nothing is left."""
    rng = random.Random(seed)
    cache = LabelCache(rng.randrange(1, 4), prompts, observer, prompts_at_once=rng.randrange(1, 4))
    prompts.gate.clear()
    prompts.failing, prompts.invalid = {"f"}, {"g"}
    calls: list[asyncio.Task[tuple[np.ndarray, int]]] = []
    asked: list[str] = []
    for _ in range(60):
        if rng.random() < 0.5:
            asked.append("".join(rng.choices("abcdefg", weights=[6] * 5 + [1, 1], k=rng.randrange(1, 6))))
            labels = LabelSet.of([*asked[-1]], ["{label}"] * rng.randrange(3))
            calls.append(asyncio.create_task(cache.embed(labels, rng.choice("xyz"))))
        if calls and rng.random() < 0.3:
            rng.choice(calls).cancel()
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        if rng.random() < 0.5:
            await prompts.release_chunk()
    prompts.gate.set()

    await asyncio.wait_for(asyncio.wait(calls), 10.0)
    await settle()

    assert cache._pending == {}
    assert len(asyncio.all_tasks()) == 1
    for call, wanted in zip(calls, asked, strict=True):
        if not call.cancelled() and call.exception() is None:
            np.testing.assert_allclose(call.result()[0], [_direction(label) for label in wanted], atol=1e-6)
