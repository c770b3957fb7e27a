"""Asynchronous generators: each is closed by the loop that ran it, and azip closes what it steps through."""

import gc
import sys
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

import flowno
from flowno import CancelScope, EventLoop, azip, sleep, spawn

pytestmark = pytest.mark.usefixtures("backend")


async def count(number: int, closed: list[str], name: str = "", start: int = 0) -> AsyncGenerator[int, None]:
    """So many numbers; says when it has cleaned up, which takes it two turns."""
    try:
        for value in range(start, start + number):
            await sleep(0)
            yield value
    finally:
        await sleep(0)
        await sleep(0.001)
        closed.append(name)


# ------------------------------------------------------------------------------------------------ left before their end


@pytest.mark.parametrize("ended", ["break", "error", "dropped"])
def test_a_generator_that_is_left_early_is_closed_by_the_loop(ended: str, caplog: pytest.LogCaptureFixture) -> None:
    closed: list[str] = []

    async def leave() -> None:
        async for _ in count(9, closed):
            if ended == "error":
                raise ValueError("of the body")
            break

    async def root() -> None:
        if ended == "dropped":
            generator = count(9, closed)
            assert await anext(generator) == 0
            del generator
        elif ended == "error":
            with pytest.raises(ValueError, match="of the body"):
                await leave()
        else:
            await leave()
        gc.collect()
        while not closed:
            await sleep(0)

    flowno.run(root())
    assert closed == [""]
    assert caplog.records == []


def test_a_generator_that_is_left_at_the_end_of_the_run_is_closed_before_the_run_ends() -> None:
    closed: list[str] = []

    async def root() -> None:
        async for _ in count(9, closed):
            break

    with EventLoop() as loop:
        loop.run_until_complete(root(), join=True)
        gc.collect()
        loop.run_until_complete(sleep(0), join=True)
        assert closed == [""]


def test_generators_that_are_left_over_are_closed_with_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    closed: list[str] = []
    kept: list[AsyncGenerator[int, None]] = []

    async def root() -> None:
        for name in ("one", "two"):
            kept.append(count(9, closed, name))
            await anext(kept[-1])

    loop = EventLoop()
    loop.run_until_complete(root(), join=True)
    assert closed == []
    loop.close()
    assert sorted(closed) == ["one", "two"]
    assert caplog.records == []


def test_a_generator_whose_clean_up_fails_is_logged_and_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    async def failing() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            await sleep(0)
            raise ValueError("of the generator")

    async def root() -> str:
        async for _ in failing():
            break
        gc.collect()
        for _ in range(5):
            await sleep(0)
        return "root"

    assert flowno.run(root()) == "root"
    gc.collect()
    assert [repr(record.exc_info and record.exc_info[1]) for record in caplog.records] == [
        "ValueError('of the generator')"
    ]


def test_the_hooks_of_the_program_are_there_again_after_a_run() -> None:
    before = sys.get_asyncgen_hooks()
    flowno.run(sleep(0))
    assert sys.get_asyncgen_hooks() == before


# ----------------------------------------------------------------------------------------------------------------- azip


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([3], [(0,), (1,), (2,)]),
        ([0], []),
        ([2, 2], [(0, 100), (1, 101)]),
        ([1, 3], [(0, 100)]),
        ([3, 1], [(0, 100)]),
        ([3, 0, 2], []),
        ([3, 2, 4], [(0, 100, 200), (1, 101, 201)]),
    ],
    ids=str,
)
def test_azip_ends_with_the_shortest_and_closes_all(lengths: list[int], expected: list[tuple[int, ...]]) -> None:
    closed: list[str] = []

    async def root() -> list[tuple[int, ...]]:
        counts = [count(length, closed, str(n), 100 * n) for n, length in enumerate(lengths)]
        result = [item async for item in azip(*counts)]
        started = lengths if 0 not in lengths else lengths[: lengths.index(0) + 1]  # those after it were never asked
        assert sorted(closed) == [str(n) for n in range(len(started))]
        return result

    assert flowno.run(root()) == expected


@pytest.mark.parametrize("how", ["closed early", "cancelled", "an iterable fails"])
def test_azip_closes_its_iterables_however_it_ends(how: str) -> None:
    closed: list[str] = []

    async def failing() -> AsyncIterator[int]:
        yield 1
        raise ValueError("of an iterable")

    async def consume() -> None:
        async for _ in azip(
            count(9, closed, "one"), failing() if how == "an iterable fails" else count(9, closed, "two")
        ):
            await sleep(0)

    async def root() -> None:
        if how == "closed early":
            pairs = azip(count(9, closed, "one"), count(9, closed, "two"))
            assert await anext(pairs) == (0, 0)
            await pairs.aclose()
        elif how == "cancelled":
            task = await spawn(consume())
            for _ in range(4):
                await sleep(0)
            await task.cancel()
            gc.collect()
            while len(closed) < 2:
                await sleep(0)
        else:
            with pytest.raises(ValueError, match="of an iterable"):
                await consume()

    flowno.run(root())
    assert sorted(closed) == (["one"] if how == "an iterable fails" else ["one", "two"])


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
def test_azip_closes_the_others_where_the_clean_up_of_one(how: str) -> None:
    closed: list[str] = []

    async def with_a_clean_up(name: str) -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            closed.append(name)
            if how == "fails":
                raise ValueError(name)
            await sleep(0)

    async def root() -> None:
        with CancelScope() as scope:
            pairs = azip(with_a_clean_up("one"), with_a_clean_up("two"))
            await anext(pairs)
            if how == "fails":
                with pytest.raises(ValueError, match="two"):
                    await pairs.aclose()
            else:
                scope.cancel()
                await pairs.aclose()
        assert closed == ["one", "two"]

    flowno.run(root())


def test_azip_takes_iterables_that_cannot_be_closed() -> None:
    class Numbers:
        def __init__(self) -> None:
            self.next = 0

        def __aiter__(self) -> "Numbers":
            return self

        async def __anext__(self) -> int:
            self.next += 1
            if self.next > 2:
                raise StopAsyncIteration
            return self.next

    async def root() -> list[tuple[int, int]]:
        return [pair async for pair in azip(Numbers(), Numbers())]

    assert flowno.run(root()) == [(1, 1), (2, 2)]
