"""What answers requests: an engine, which takes them from any thread.

Read `protocol.py` (what an engine does) and `intake.py` (the way into it), then `prefill.py`
(prompts), `batch.py` (decoding) and `local.py`. `whole.py` is the engine of attached models, and
`remote.py` forwards to a vLLM.
"""
