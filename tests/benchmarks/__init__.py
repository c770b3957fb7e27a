"""flowno beside its peers: the same work, done by each of them in its own way, measured in one run.

``python -m tests.benchmarks`` measures everything that can run here and prints tables; ``--help`` says what can be
chosen. Each measurement is a process of its own, pinned to one processor, with the load on another; the contenders take
turns within every round, and what is compared are ratios inside of a round, so that a machine that is slower for a
while is slower for all of them. The cost of an operation is the processor time of the process that does it, which other
programs on the machine disturb far less than the time that passes. They do disturb it: a server that is not kept busy
wakes up more often, so a machine that does nothing else gives the best figures.

``--json FILE`` keeps all the figures, and ``--from FILE`` prints the tables again, with ``--format rst`` for the
documentation, and draws the plots with ``--plots DIR``.

What is measured stands in tables: the :mod:`cases <tests.benchmarks.cases>`, for which
:mod:`contenders <tests.benchmarks.contenders>`, with which :mod:`targets <tests.benchmarks.targets>`.
"""
