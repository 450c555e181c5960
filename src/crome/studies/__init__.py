"""The claims of the papers, checked on packaged data.

Read `ablate` (which part of the adapter helps, and how many rows a task needs), `gate` (what the
adapter's parts do), `retention` (what the language model still knows) and `tuning` (the ways of
training that they compare).
"""
