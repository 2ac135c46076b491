"""Optional accelerators, which compute the same as torch's own operations, faster. No run needs them.

``native_dense`` computes many small networks at once in C, compiled at first use where there is a compiler;
``FOUNDATION_NATIVE=0`` leaves it out. Stacked teachers take half the time or less with it: see
docs/results/performance.md.
"""
