"""Real weights and data that arrive as Python packages: what there is, fetching, conversion.

Read `packages` first; `efficientnet` is the packaged image encoder.
"""
