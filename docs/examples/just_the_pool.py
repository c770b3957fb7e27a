"""The bug of ``prices.py`` without anything else: more requests, one after the other, than connections."""

from prices import Pool

from flowno import run
from flowno.core.event_loop.instrumentation import PrintInstrument


async def request(pool):
    async with pool.connection() as connection:
        print("a request has", connection)


async def main():
    pool = Pool("one", "other")
    for _ in range(3):
        await request(pool)


with PrintInstrument():
    run(main())
