"""Each event loop has a resource of its own, which never outlives the loop."""

import asyncio
import gc
import multiprocessing
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from qwen3_triton_client import PerEventLoop


@dataclass(eq=False)
class Pool:
    closed: threading.Event = field(default_factory=threading.Event)


async def close(pool: Pool) -> None:
    await asyncio.sleep(0)
    pool.closed.set()


def new_pools() -> PerEventLoop[Pool]:
    return PerEventLoop(Pool, close)


async def test_a_loop_gets_the_same_resource_each_time() -> None:
    pools = new_pools()
    pool = await pools.get()
    assert await pools.get() is pool
    assert pools.is_current(pool)
    await pools.aclose()


def test_each_loop_gets_a_resource_that_is_closed_with_it() -> None:
    pools = new_pools()
    first, second = asyncio.run(pools.get()), asyncio.run(pools.get())
    assert first is not second
    assert first.closed.is_set()
    assert second.closed.is_set()


async def test_after_closing_another_resource_is_opened() -> None:
    pools = new_pools()
    first = await pools.get()
    await pools.aclose()
    await pools.aclose()
    assert first.closed.is_set()
    assert not pools.is_current(first)
    second = await pools.get()
    assert second is not first
    await pools.aclose()


def test_the_resource_of_another_loop_is_not_current() -> None:
    pools = new_pools()
    first = asyncio.run(pools.get())

    async def is_current() -> bool:
        await pools.get()
        return pools.is_current(first)

    assert not asyncio.run(is_current())


def test_an_owner_collected_just_before_its_loop_ends_leaves_nothing_open() -> None:
    async def close_slowly(pool: Pool) -> None:
        for _ in range(20):  # more turns than a loop takes to shut down
            await asyncio.sleep(0)
        pool.closed.set()

    async def open_and_drop() -> Pool:
        pools = PerEventLoop(Pool, close_slowly)
        return await pools.get()

    with asyncio.Runner() as runner:
        pool = runner.run(open_and_drop())
        gc.collect()
    assert pool.closed.is_set()


def test_a_resource_is_closed_in_its_loop_when_its_owner_is_collected_elsewhere() -> None:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    pools = new_pools()
    pool = asyncio.run_coroutine_threadsafe(pools.get(), loop).result()
    del pools
    gc.collect()
    assert pool.closed.wait(timeout=120)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def open_in_child(pools: PerEventLoop[Pool], results: Any) -> None:
    pool = asyncio.run(pools.get())
    results.put(pool.closed.is_set())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_opens_a_resource_of_its_own() -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    pools = new_pools()
    asyncio.run(pools.get())
    child = context.Process(target=open_in_child, args=(pools, results))
    child.start()
    assert results.get(timeout=120)
    child.join()
