"""How the small real LLaVA was made on which the attached adapter is measured.

Read `base` (a packaged vision transformer and language model joined in transformers' own format),
`projector` (its projector learns from generated scenes) and `compare` (adapter and LoRA on one
task). Not part of the installed package.
"""
