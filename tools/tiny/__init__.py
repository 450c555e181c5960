"""How crome-tiny, the packaged base, was made: pictures, scenes, questions, and its training.

Read `pictures` and `questions` first, then `scenes`, `representation` (the Q-Former alone) and
`train` (projections, adapter and the whole bridge). Not part of the installed package.
"""
