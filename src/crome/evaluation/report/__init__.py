"""The page about a run or a comparison: charts and a gallery in one HTML file.

Read `page` first, with its template `report.html`, then `charts` and `gallery`; `bars` and
`comparison` fill them from scores.
"""
