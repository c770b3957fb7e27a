"""Greets whoever says a name, a line each."""


async def greet(stream):
    async for line in stream:
        await stream.write(b"Hello, " + line)
