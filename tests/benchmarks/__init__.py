"""flowno beside its peers: the same work, done by each of them in its own way, measured in one run.

``python -m tests.benchmarks`` measures everything that can run here and prints tables; ``--help`` says what can be
chosen. Each measurement is a process of its own, pinned to one processor, with the load on another; the contenders take
turns within every round, and what is compared are ratios inside of a round, so that a machine that is slower for a
while is slower for all of them. The cost of an operation is the processor time of the process that does it, which other
programs on the machine disturb far less than the time that passes.
"""
