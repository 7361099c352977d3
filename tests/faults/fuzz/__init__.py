"""Seeded, bounded fuzzing of all that jaxalign reads: `python -m tests.faults.fuzz --cases=1000000 --seed=0`.

Each surface is a file here that makes cases from a seed and says what reads them. The runner calls it in a worker
process, which may not take more than two seconds or 1 GiB for a case, open a file outside of the case's folder or run
code, and in which only the project's own errors may arise.
"""
