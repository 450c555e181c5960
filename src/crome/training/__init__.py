"""One stage of training on `transformers.Trainer`: the adapter alone, or more of the bridge.

Read `train` first (the verb and `fit`), then `trainer` (what differs from transformers); `plan`
and `probe` tell beforehand what a run needs.
"""
