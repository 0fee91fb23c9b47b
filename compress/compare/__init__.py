"""Finished artifacts side by side: numbers of one protocol are ranked, all others are named.

sides.py      one artifact: its headers, its records, its lock
measures.py   every number of it, and what may be ranked
paired.py     tasks item by item: who is right more often, and where answers differ
locks.py      what differs in the recipes
table.py      all of it together: `compare`
"""

from compress.compare.table import compare

__all__ = ["compare"]
