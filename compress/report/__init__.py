"""Results in, a page out: rebuilt from ``results.json`` and ``measured.json``, without torch.

rows.py       what is said: every table, and the verdict in plain words
verdict.py    what is said of gates: every limit, what was found, what was tried
plots.py      what is drawn: figures as SVG whose colours the page decides
html.py       report.html, one file that needs nothing else
markdown.py   report.md, and README.md (the model card)
pages.py      both pages, written beside the results
"""
