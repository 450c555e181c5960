"""What answers requests: `protocol.py` says what an engine does; `local.py` and `remote.py` do it.

Read `protocol.py`, then `prefill.py` (prompts) and `batch.py` (decoding), then `local.py`.
"""
