"""Locks that outlive a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def in_forked_child(call: Callable[[], object]) -> None:
    """Lets something be called in each forked child; Windows has none."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)


class ForkSafeLock:
    """A reentrant lock: `with lock(): …`. A forked child gets a new one.

    A thread of the parent may hold the old one, and there is no such thread in the child.
    """

    def __init__(self) -> None:
        """Starts free; for locks that live as long as the process."""
        self._renew()
        in_forked_child(self._renew)

    def __call__(self) -> threading.RLock:
        """The lock of this process."""
        return self._lock

    def _renew(self) -> None:
        self._lock = threading.RLock()
