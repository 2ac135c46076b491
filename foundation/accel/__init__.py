"""Optional accelerators: the same numbers as torch's own operations, sooner. Nothing here is needed to run.

``native_dense`` computes many small networks at once in C, compiled at first use where there is a compiler;
``FOUNDATION_NATIVE=0`` leaves it out. Stacked teachers take half the time or less with it: see
docs/results/performance.md.
"""
