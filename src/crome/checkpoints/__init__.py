"""From a name to a model and its processor: presets, checkpoints, and new bridges.

Read `loading` first, then `presets`; `params` counts what a preset has.
"""
