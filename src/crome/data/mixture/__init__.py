"""Many data sets as one: a mixture file, prepared once, read at any position.

Read `file` (what a mixture file says), `build` (what is made of it) and `mixture` (how it is
read); `layouts` and `templates` are the formats and wordings of the data sets.
"""
