"""A megabyte goes to an echo server and comes back, in both directions at once."""

from flowno import current_event_loop, move_on_after, run, sleep, socketpair, spawn

SIZE = 1_000_000


async def echo(sock):
    with sock:
        while data := await sock.recv(65_536):
            await sock.sendAll(data)


async def receive(sock):
    received = 0
    while received < SIZE:
        received += len(await sock.recv(65_536))


async def main():
    one, other = socketpair()
    with one:
        await spawn(echo(other))
        receiver = await spawn(receive(one))
        with move_on_after(1.5) as limit:
            await sleep(0.1)
            await one.sendAll(bytes(SIZE))
            await receiver.join()
        print(current_event_loop(), "not all of it came back" if limit.cancelled_caught else "all of it came back")
        await receiver.cancel()


run(main())
