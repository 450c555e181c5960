"""The claims of the papers, checked on packaged data.

Read `ablate` (which part of the adapter helps), `retention` (what the language model still knows)
and `tuning` (the other ways of training that they compare with).
"""
