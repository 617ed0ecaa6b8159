import asyncio
import threading
import time

import pytest
from fastapi import HTTPException

from vse_search.app import Workers


@pytest.fixture
def workers():
    workers = Workers(threads=1, queue=1)
    yield workers
    assert workers.close(10.0)


def test_a_call_gives_its_result_or_its_error(workers):
    async def calls():
        assert await workers.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await workers.run(divmod, 7, 0)

    asyncio.run(calls())


def test_a_waiting_call_that_is_given_up_is_not_made_and_leaves_its_place(workers):
    may_end, made = threading.Event(), []

    async def calls():
        first = asyncio.create_task(workers.run(may_end.wait, 10))
        given_up = asyncio.create_task(workers.run(made.append, "given up"))
        await asyncio.sleep(0)
        with pytest.raises(HTTPException, match="429: too many requests wait"):
            await workers.run(made.append, "refused")
        given_up.cancel()
        await asyncio.sleep(0.01)
        later = asyncio.create_task(workers.run(made.append, "later"))
        await asyncio.sleep(0)
        may_end.set()
        await asyncio.gather(first, later)

    asyncio.run(calls())
    assert made == ["later"]


def test_a_call_that_has_begun_keeps_its_place(workers):
    may_end = threading.Event()

    async def calls():
        begun = asyncio.create_task(workers.run(may_end.wait, 10))
        await asyncio.sleep(0.05)
        begun.cancel()
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(workers.run(int))
        await asyncio.sleep(0)
        with pytest.raises(HTTPException, match="429: too many requests wait"):
            await workers.run(int)
        may_end.set()
        await waiting

    asyncio.run(calls())


def test_the_end_does_not_wait_longer_than_it_is_told():
    workers, may_end = Workers(threads=1, queue=1), threading.Event()

    async def start():
        task = asyncio.create_task(workers.run(may_end.wait, 10))
        await asyncio.sleep(0.05)
        task.cancel()

    asyncio.run(start())
    start_s = time.monotonic()
    assert not workers.close(0.1)
    assert time.monotonic() - start_s < 1
    may_end.set()
    assert workers.close(10.0)
