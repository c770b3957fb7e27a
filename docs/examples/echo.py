from flowno import socket, spawn, sleep, EventLoop

async def echo_server():
    server_sock = socket()
    server_sock.bind(('localhost', 8888))
    server_sock.listen(1)
    print("Server: Listening on port 8888")
    client_sock, addr = await server_sock.accept()
    print(f"Server: Client connected from {addr}")
    data = await client_sock.recv(1024)
    print(f"Server: Received: {data.decode()}")
    await client_sock.sendAll(b"Echo: " + data)
    print("Server: Response sent")

async def echo_client():
    await sleep(0.1)
    client_sock = socket()
    client_sock.connect(('localhost', 8888))
    print("Client: Connected to server")
    message = b"Hello, world!"
    await client_sock.sendAll(message)
    print(f"Client: Sent: {message.decode()}")
    response = await client_sock.recv(1024)
    print(f"Client: Received: {response.decode()}")

async def main():
    server_task = await spawn(echo_server())
    client_task = await spawn(echo_client())
    await server_task.join()
    await client_task.join()
    print("Main: All tasks completed")

event_loop = EventLoop()
event_loop.run_until_complete(main(), join=True)
