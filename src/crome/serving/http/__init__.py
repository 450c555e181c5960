"""HTTP around the service: routes (`app.py`), bodies, replies, keys and the server process.

Read `schema.py`, then `app.py` and `answers.py`, then `gate.py` and `run.py`.
"""
