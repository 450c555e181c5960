"""Benchmarks and own rows: questions to predictions, predictions to scores, scores to reports.

Read `task` first (what a benchmark is), then one file of `tasks/`, then `predict` (a model's
answers), `score` (pure functions of predictions) and `compare` (two runs, paired).
"""
