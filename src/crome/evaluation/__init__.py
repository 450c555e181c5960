"""Evaluation: tasks, predictions, pure scorers, judges and reports."""
