"""What tests of servers wait for."""

from flowno import Server, sleep

__all__ = ["all_ended"]


async def all_ended(server: Server) -> None:
    """Until no connection is left; pytest's time limit is the end of it."""
    while server.connections:
        await sleep(0.001)
