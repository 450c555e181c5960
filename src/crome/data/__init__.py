"""Rows of images, questions and answers: readers, checks, order, and batches.

Read `reader` first (files to rows), then `stream` and `sampler` (rows in training order),
`collator` (rows to a batch) and `mixture/` (many data sets as one).
"""
