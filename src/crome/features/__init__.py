"""Features of the frozen parts, computed once and kept on disk.

Read `cache` first (what is kept, under which name, and the processor that uses it), then `store`
(how it lies on disk) and `verbs` (`crome cache`, and what training and evaluation call).
"""
