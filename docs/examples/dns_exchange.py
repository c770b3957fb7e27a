"""A name server, and who asks it, by UDP.

``python dns_exchange.py serve [--port PORT]`` and ``python dns_exchange.py ask [--port PORT] www.example.test AAAA``

The messages are dnspython's. This program carries them: datagrams get lost, come twice, or come from somebody else.
"""

import argparse
import logging
import socket
import sys

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.zone

import flowno

logger = logging.getLogger("dns_exchange")

PAYLOAD = 1232  # bytes of a datagram that every network carries whole, as https://dnsflagday.net/2020 recommends

ZONE = dns.zone.from_text(
    """
@      300 IN SOA   ns hostmaster 1 3600 600 86400 300
       300 IN NS    ns
ns     300 IN A     127.0.0.1
www    300 IN A     192.0.2.1
       300 IN A     192.0.2.2
       300 IN AAAA  2001:db8::1
ftp    300 IN CNAME www
large  300 IN TXT   "{0}" "{0}" "{0}" "{0}"
""".format("all work and no play makes Jack a dull boy. " * 5),
    origin="example.test.",
    relativize=False,
)

# ----------------------------------------------------------------------------------------------------------- the server


def answer_to(wire):
    """The bytes that answer these bytes; None where they deserve none."""
    try:
        query = dns.message.from_wire(wire)
    except dns.exception.DNSException:
        if len(wire) < 12 or wire[2] & 0x80:  # no header, or an answer: answering it could go back and forth for ever
            return None
        broken = dns.message.Message(id=int.from_bytes(wire[:2], "big"))
        broken.flags |= dns.flags.QR
        broken.set_rcode(dns.rcode.FORMERR)
        return broken.to_wire()
    if query.flags & dns.flags.QR:
        return None
    response = dns.message.make_response(query, our_payload=PAYLOAD)
    fill(response, query)
    size = min(max(query.payload, 512), PAYLOAD) if query.edns >= 0 else 512  # RFC 6891 section 6.2.3
    # What does not fit is left out, and a flag says so: then the client can ask again by TCP.
    return response.to_wire(max_size=size, prefer_truncation=True)


def fill(response, query):
    """Put into the response what the zone has for the query."""
    if query.opcode() != dns.opcode.QUERY:
        response.set_rcode(dns.rcode.NOTIMP)
        return
    if len(query.question) != 1:
        response.set_rcode(dns.rcode.FORMERR)
        return
    (question,) = query.question
    name = question.name
    if question.rdclass != dns.rdataclass.IN or not name.is_subdomain(ZONE.origin):
        response.set_rcode(dns.rcode.REFUSED)
        return
    response.flags |= dns.flags.AA
    for _ in range(8):  # aliases may lead to aliases, and must not lead on for ever
        if found := ZONE.get_rrset(name, question.rdtype):
            response.answer.append(found)
            return
        alias = ZONE.get_rrset(name, dns.rdatatype.CNAME)
        if not alias:
            break
        response.answer.append(alias)
        name = alias[0].target
    if ZONE.get_node(name) is None:
        response.set_rcode(dns.rcode.NXDOMAIN)
    response.authority.append(ZONE.get_rrset(ZONE.origin, dns.rdatatype.SOA))


async def serve(options):
    handle, address = await udp_socket(options.host, options.port)
    with handle:
        handle.bind(address)
        print(f"Listening on {options.host}:{handle.getsockname()[1]}", flush=True)
        while True:
            try:
                wire, client = await handle.recvfrom(65535)
                response = answer_to(wire)
                if response is not None:
                    await handle.sendto(response, client)
            except OSError as error:  # about one client: it has gone, or no way leads there; the others are served
                logger.warning("%s", error)


# ----------------------------------------------------------------------------------------------------------- the client


async def ask(host, port, name, rdtype="A", *, seconds=1.0, tries=3, payload=PAYLOAD):
    """The response of a server, asked again where it does not answer in time."""
    query = dns.message.make_query(name, rdtype, use_edns=payload > 512, payload=payload)
    handle, address = await udp_socket(host, port)
    with handle:
        # Connected, the socket takes datagrams from this address only, and hears where nobody listens there.
        await flowno.connect(handle, address)
        for _ in range(tries):
            await handle.send(query.to_wire())
            try:
                async with flowno.timeout(seconds):
                    return await receive_response(handle, query)
            except TimeoutError:
                seconds *= 2  # RFC 1035 section 4.2.1: no faster than the network can carry it
    raise TimeoutError(f"{host} port {port} has not answered {tries} questions")


async def receive_response(handle, query):
    while True:
        wire = await handle.recv(65535)
        try:
            # Cut off on purpose is no error; the flag is still in the response.
            response = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            continue
        if query.is_response(response):  # the same id and the same question; anything else is late, or forged
            return response


async def udp_socket(host, port):
    """A handle of the right family for an address, and that address."""
    infos = await flowno.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, kind, proto, _, address = infos[0]
    return flowno.socket(family, kind, proto), address


async def show(options):
    response = await ask(options.host, options.port, options.name, options.type, seconds=options.seconds)
    print(dns.rcode.to_text(response.rcode()), dns.flags.to_text(response.flags))
    for rrset in response.answer:
        print(rrset)
    return response.rcode() == dns.rcode.NOERROR


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A name server for example.test, and who asks it.")
    actions = parser.add_subparsers(required=True)
    serve_parser = actions.add_parser("serve", help="answer questions, until Ctrl-C")
    ask_parser = actions.add_parser("ask", help="ask one question")
    for action in (serve_parser, ask_parser):
        action.add_argument("--host", default="127.0.0.1")
        action.add_argument("--port", type=int, default=5353)
    serve_parser.set_defaults(run=serve)
    ask_parser.add_argument("name")
    ask_parser.add_argument("type", nargs="?", default="A", help="such as A, AAAA, TXT")
    ask_parser.add_argument("--seconds", type=float, default=1.0, help="how long to wait for the first answer")
    ask_parser.set_defaults(run=show)
    options = parser.parse_args()
    try:
        sys.exit(0 if flowno.run(options.run(options)) else 1)
    except KeyboardInterrupt:
        print("Stopped")
    except (OSError, ValueError, dns.exception.DNSException) as error:
        sys.exit(f"{type(error).__name__}: {error}")
