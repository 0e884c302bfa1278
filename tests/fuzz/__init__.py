"""Hostile input, by the million: what the readers of files must take without a crash, a hang or an exhausted memory.

    targets/    one module a reader: what it is given, which errors it may raise, and within which limits
    guard.py    one input through one target, within its limits, in view of another process
    mutation.py how sound inputs are spoilt, for all targets; what knows a format is beside its target
    driver.py   where inputs come from: atheris (coverage-guided) where it is installed, else mutations of the corpus
    runner.py   runs drivers in processes of their own, starts them anew after a crash, keeps findings, counts
    corpus/     small sound inputs of each target (seed-*, written by `python -m tests.fuzz --write-seeds`), and every
                input that went wrong once, named after what it did; tests/test_fuzz.py runs them all

`python -m tests.fuzz --help` runs it for as long as you like.
"""
