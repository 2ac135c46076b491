"""Labelled transitions in memory and on disk.

Five words, here and in the learner:

- transition: the student's observation at one env step of one environment, and the teacher's outputs (targets) at it;
- trajectory: consecutive transitions of one environment; a training sequence is a part of one;
- chunk: ``chunk_steps`` consecutive env steps of every environment, the unit that is written, evicted and saved;
- buffer: the chunks in memory, a ring (``DistillationDataset``), made to the sizes of a ``BufferSpec``;
- batch: transitions or sequences that one step of the optimiser learns from.

A column is a part of a transition; ``rows`` is the matrix of those that are floating-point numbers.
"""
