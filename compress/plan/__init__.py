"""A recipe held against a model before anything is read but headers: mistakes, sizes, memory, time.

mistakes.py    what cannot work: `check`
sizes.py       the artifact to the byte, and the disk that making it takes
budget.py      whether a budget of bits can be kept, and what it allows at most: `check_budget`
footprint.py   what each step of a run holds in memory
solving.py     what the stages hold, which is most of it
memory.py      the limits that keep it within a budget
work.py        how many operations each step has
pace.py        how long, told by the runs that have finished here
consumers.py   who will open the artifact, and why not
overview.py    all of it as one `Plan`: `make`
"""

from compress.plan.budget import check as check_budget
from compress.plan.mistakes import check
from compress.plan.overview import Plan, make

__all__ = ["Plan", "check", "check_budget", "make"]
