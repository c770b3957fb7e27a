"""The servers of the network cases, one module to a way of writing them, all with the same functions in the same order.

``serve`` accepts connections from a listening socket and gives each to one of the others, for ever; these are what a
user of that framework would write:

``echo``
    Sends back what comes.
``lines``
    Reads lines by the buffered streams of the framework, and sends back each.
``tls_echo``
    As ``echo``, through TLS.
``churn``
    Sends back the first message, and closes.
``sink``
    Receives, and sends nothing.

A module lacks the functions that make no sense on its level: what has sockets only reads no lines.

``python -m tests.benchmarks.servers MODULE FUNCTION`` runs one, see :mod:`tests.benchmarks.servers.__main__`.
"""

#: How many bytes are received at most at a time, where the framework lets one choose.
CHUNK = 65536
