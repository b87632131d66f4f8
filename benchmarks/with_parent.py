"""A worker process that ends with the process that started it, however that one ends. What it works on is not known."""

from __future__ import annotations

import os
import select
import signal
import sys

__all__ = ["end_with_parent"]

#: prctl(2): the signal that a process gets when the thread that started it ends.
_PR_SET_PDEATHSIG = 1


def end_with_parent(answers: int) -> None:
    """To be called first of all: from then on the kernel kills this process when its parent ends.

    A worker in a session of its own is not reached by what ends its parent's group; while it computes it does not see
    either that nobody waits, and would go on beside whatever is measured next.

    Args:
        answers: descriptor of the pipe or socket that the parent reads. If nobody is there, the parent had ended
            before the kernel was told, and this process ends at once.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    waiting = select.poll()
    waiting.register(answers, 0)
    if any(event & (select.POLLERR | select.POLLHUP) for _, event in waiting.poll(0)):
        os._exit(0)
