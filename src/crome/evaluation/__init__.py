"""Benchmarks and own rows: questions to predictions, predictions to scores, scores to reports.

Read `task` first (what a benchmark is), then one file of `tasks/` with `cells`, `replies` and
`tally`, which they are made of, then `predict` (a model's answers), `scoring` and `grading` (pure
functions of predictions; verdicts of a judge) and `paired` (two runs). `evaluate`, `score` and
`compare` are the commands, `run` is the whole way; `report/` writes the pages, `toolkits/` talks to
others.
"""
