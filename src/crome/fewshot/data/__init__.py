"""Sets of labelled pictures, the shots drawn from them, and checks against leaks.

Read ``sets`` first, then ``reading`` (folders and tables), ``draws`` and ``leaks``; ``coop`` reads
the published sets, ``sample`` unpacks the packaged one.
"""
