"""The core: commands, tasks, the event loop and the socket handles that it serves."""
