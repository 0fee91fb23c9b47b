"""What a student must show at a glance to be judged: most of a hopeless run's time is saved."""

from __future__ import annotations

from dataclasses import dataclass

from compress.errors import GivenUp
from compress.results import Divergence

MARGIN = 2.0  # times the KL hoped for: so far off at a glance, no student was ever within it


@dataclass(frozen=True)
class Hopes:
    """What is hoped of a student, as it will be measured; None where it may be anything."""

    kl_mean_max: float | None = None  # nats
    size_bytes_max: int | None = None

    def check_size(self, size_bytes: int) -> None:
        """Check the size, which no judgement changes.

        Raises:
            GivenUp: it is larger.
        """
        if self.size_bytes_max is not None and size_bytes > self.size_bytes_max:
            raise GivenUp(
                f"size: {size_bytes:,} bytes, and {self.size_bytes_max:,} are the most hoped for; "
                "it was not judged",
                size_bytes=size_bytes,
            )

    def is_far(self, kl_mean: float) -> bool:
        """Whether a KL at a glance is more than `MARGIN` times what is hoped for."""
        return self.kl_mean_max is not None and kl_mean > MARGIN * self.kl_mean_max

    def check(self, found: Divergence) -> None:
        """Check what was seen of a few windows, generously: others may be twice as easy.

        Raises:
            GivenUp: its KL is more than `MARGIN` times what is hoped for.
        """
        if self.is_far(found.kl_mean):
            raise GivenUp(
                f"KL {found.kl_mean:.4f} nats on the first {found.tokens:,} tokens of {found.set}: "
                f"more than {MARGIN:g} times the {self.kl_mean_max:g} hoped for; it was not judged",
                kl_mean=found.kl_mean,
            )
