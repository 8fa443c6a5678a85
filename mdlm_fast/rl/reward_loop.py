"""Coroutine reward functions: an event loop in a thread of its own, and all of a batch on it at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Coroutine
from typing import Any

from mdlm_fast.rl.reward_checks import raised


class LoopThread:
    """An event loop in a thread of its own: it works where a loop already runs, as in a notebook, and a client that an
    earlier call opened on it can be used again."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="reward-functions", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
        """The result of a coroutine; the calling thread waits."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C while waiting
            raise

    def close(self) -> None:
        """Ends the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=1.0)
        if not self._thread.is_alive():  # else a function blocks the loop; the thread is a daemon and ends with Python
            self._loop.close()


async def gather(named: list[tuple[str, Awaitable[Any]]]) -> list[Any]:
    """Results of awaitables, each with its function's name; run concurrently; the first failure cancels the rest.

    Raises:
        RewardError: naming the function.
    """

    async def one(name: str, awaitable: Awaitable[Any]) -> Any:
        try:
            return await awaitable
        except Exception as error:
            raise raised(name, error) from error

    tasks = [asyncio.ensure_future(one(name, awaitable)) for name, awaitable in named]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
