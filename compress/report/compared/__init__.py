"""Artifacts side by side, told: as a page, as tables, as files.

cells.py      numbers and protocols in words
tables.py     every table, as text
files.py      Markdown and CSV
page.py       one page that needs nothing else; its script draws, sorts and points
"""
