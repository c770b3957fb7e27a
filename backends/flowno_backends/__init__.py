"""The selectors that ship with flowno: one module for each system call that waits on many descriptors.

Every module can be imported on every platform. Making a selector whose system call the platform lacks is an ``OSError``
that says so.

PYTEST_DONT_REWRITE: as in flowno, with which this is installed.
"""

from flowno_backends.base import CAPABILITIES, BackendSelector
from flowno_backends.epoll import EpollSelector
from flowno_backends.kqueue import KqueueSelector
from flowno_backends.poll import PollSelector
from flowno_backends.select import SelectSelector

__all__ = [
    "CAPABILITIES",
    "BackendSelector",
    "EpollSelector",
    "KqueueSelector",
    "PollSelector",
    "SelectSelector",
]
