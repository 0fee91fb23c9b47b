"""What a run found, as frozen dataclasses of plain numbers, and their way to JSON and back.

``results.json`` holds a `Results`, identical for two runs of one lock on one machine; times and
memory, which never are, live in ``measured.json`` as a `Measured`. Field names are the API of every
``--json`` output.
"""

from compress.results.distilled import Distilled, HeldOut
from compress.results.items import items_fingerprint
from compress.results.records import (
    SCHEMA_VERSION,
    Allocation,
    Divergence,
    GateResult,
    KVBlock,
    Limits,
    LinearResult,
    Measured,
    Perplexity,
    Progress,
    Provenance,
    Raised,
    Results,
    Round,
    Sample,
    Share,
    Side,
    SizePart,
    StageResult,
    TaskScore,
    Verdict,
    Width,
    fell_back,
    renumbered,
)
from compress.results.restructured import BlockCut, Candidate, ModelShape, Restructured
from compress.results.text import from_json, to_json
from compress.results.timed import NEW_TOKENS, PROMPT_TOKENS, Timed
from compress.results.verification import Check, CheckOutcome, Consumer, Verification
from compress.results.zeros import ZeroAllocation, ZeroCost, ZeroShare

__all__ = [
    "NEW_TOKENS",
    "PROMPT_TOKENS",
    "SCHEMA_VERSION",
    "Allocation",
    "BlockCut",
    "Candidate",
    "Check",
    "CheckOutcome",
    "Consumer",
    "Distilled",
    "Divergence",
    "GateResult",
    "HeldOut",
    "KVBlock",
    "Limits",
    "LinearResult",
    "Measured",
    "ModelShape",
    "Perplexity",
    "Progress",
    "Provenance",
    "Raised",
    "Restructured",
    "Results",
    "Round",
    "Sample",
    "Share",
    "Side",
    "SizePart",
    "StageResult",
    "TaskScore",
    "Timed",
    "Verdict",
    "Verification",
    "Width",
    "ZeroAllocation",
    "ZeroCost",
    "ZeroShare",
    "fell_back",
    "from_json",
    "items_fingerprint",
    "renumbered",
    "to_json",
]
