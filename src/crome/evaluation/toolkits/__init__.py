"""Other toolkits: CROME as a model of lmms-eval, its scores beside ours, VLMEvalKit's table."""
