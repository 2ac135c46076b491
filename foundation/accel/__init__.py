"""Optional accelerators, which compute the same as torch's own operations, faster. No run needs them.

``native_dense`` computes many small networks at once and ``uniform`` draws random numbers, in C that is compiled at
first use where there is a compiler; ``FOUNDATION_NATIVE=0`` leaves both out. ``compiled`` calls functions that torch
has compiled. See docs/results/performance.md.
"""
