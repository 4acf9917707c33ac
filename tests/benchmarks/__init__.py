"""What Signalbox can do on this machine, measured beside what the machine can do without it.

`python -m tests.benchmarks` prints a table and writes it as JSON. Every ratio in it comes from one
run: the product's rounds and those it is compared with take turns, so that noise hits both.
"""
