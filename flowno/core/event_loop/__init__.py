"""The event loop, and what is asked of it."""

from .event_loop import EventLoop, current_event_loop, current_task
from .primitives import exit, sleep, socket, spawn

__all__ = ["EventLoop", "current_event_loop", "current_task", "exit", "sleep", "socket", "spawn"]
