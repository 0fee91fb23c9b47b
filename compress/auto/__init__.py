"""A recipe for what a student must keep: chosen from the shipped ones, written out for the user.

wanted.py      limits as people write them
candidates.py  which recipes may keep them: plans rule out, the catalogue sorts
trial.py       a recipe carried out in short, and what that says
choosing.py    trials, the best first, until one does: `choose`
owned.py       the recipe file that the user gets
"""

from compress.auto.choosing import choose

__all__ = ["choose"]
