"""What work has cost: counted on the turn, summed on its session."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.db import models


class Usage(models.Model):
    """The numbers of one turn, or the sum of a session's turns."""

    FIELDS = ("input_tokens", "output_tokens", "cost", "compute_ms", "storage_bytes")

    input_tokens = models.BigIntegerField(default=0, editable=False)
    output_tokens = models.BigIntegerField(default=0, editable=False)
    cost = models.DecimalField(
        "cost in USD", max_digits=14, decimal_places=6, default=Decimal(0), editable=False
    )
    compute_ms = models.BigIntegerField("milliseconds of steps", default=0, editable=False)
    storage_bytes = models.BigIntegerField("bytes of artifacts", default=0, editable=False)

    class Meta:
        abstract = True

    @classmethod
    def more(cls, **amounts: Any) -> dict[str, Any]:
        """Say what an `update()` has to be given to add these amounts."""
        return {name: models.F(name) + amount for name, amount in amounts.items() if amount}
