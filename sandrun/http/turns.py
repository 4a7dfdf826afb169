"""Who may do the next step of work that is much. Runs in http. No I/O.

A reader who takes what he gets as fast as it comes never lets the loop go, and four
hundred who begin together do a step each before anybody else is heard. So there is one
such step per turn of the loop, for all of them together: a piece of a file or of an
archive, a step of a log.
"""

from __future__ import annotations

import asyncio
from typing import Final


class Turns:
    """In the order of asking."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()

    async def take(self) -> None:
        """Wait for ours. The step itself must not wait, and comes at once."""
        async with self._of_loop():
            await asyncio.sleep(0)

    def _of_loop(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # a process may have one after the other: a lock has one
            self._loop, self._lock = loop, asyncio.Lock()
        return self._lock


TURNS: Final = Turns()  # of this process
