import pytest
from flowno import TaskGroup, open_connection, serve_tcp

from greeter import greet


@pytest.fixture
async def address():
    async with await serve_tcp(greet, "127.0.0.1", 0) as server:
        yield server.addresses[0]


@pytest.fixture
async def stream(address):
    async with await open_connection(*address) as stream:
        yield stream


async def test_a_name_is_greeted(stream):
    await stream.write(b"world\n")
    assert await stream.readline() == b"Hello, world\n"


@pytest.mark.parametrize("clients", [1, 10])
async def test_clients_do_not_wait_for_one_another(address, clients):
    async def ask(name):
        async with await open_connection(*address) as stream:
            await stream.write(name + b"\n")
            assert await stream.readline() == b"Hello, " + name + b"\n"

    async with TaskGroup() as group:
        for number in range(clients):
            await group.spawn(ask(b"client %d" % number))


def test_a_loop_of_the_test_can_be_used_without_async(flowno_loop):
    async def main():
        async with await serve_tcp(greet, "127.0.0.1", 0) as server:
            return len(server.addresses)

    assert flowno_loop.run_until_complete(main(), join=True) == 1
