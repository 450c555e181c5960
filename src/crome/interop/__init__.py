"""CROME beside other software: weights of its predecessors, exports, and pages for the hub.

Read `conversion` (InstructBLIP and BLIVA to a base), `front_end` (all that runs before the language
model, as one function), `export` and `card`.
"""
