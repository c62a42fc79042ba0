"""Who was served and who was refused, by tenant: an observer that counts, for a bounded number of tenants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from admission.events import Event, Evicted, Granted, Rejected
from admission.types import within

OTHER = "other"
"""Stands for all tenants that are not counted by name, and for callers without one."""


@dataclass(slots=True)
class TenantTotal:
    """What one tenant was given and refused."""

    granted: int = 0
    refused: int = 0


class TenantTotals:
    """Counts grants and refusals of each tenant.

    The first *most* tenants seen have counts of their own, and keep them: a counter that moved between names
    would go backwards. All later ones share `other`. Like every observer it costs time on every request.

    Args:
        most: Tenants counted by name, 1 … 1000.
    """

    def __init__(self, most: int = 20) -> None:
        within("most", most, 1, 1000)
        self._most = most
        self._totals: dict[str, TenantTotal] = {OTHER: TenantTotal()}

    @property
    def totals(self) -> Mapping[str, TenantTotal]:
        """Counts by tenant, `other` among them."""
        return self._totals

    def observe(self, event: Event) -> None:
        """Count a grant or a refusal; other events are not its concern."""
        if isinstance(event, Granted):
            self._of(event.ticket.tenant).granted += 1
        elif isinstance(event, Rejected | Evicted):
            self._of(event.ticket.tenant).refused += 1

    def _of(self, tenant: str) -> TenantTotal:
        total = self._totals.get(tenant)
        if total is None:
            if not tenant or len(self._totals) > self._most:
                return self._totals[OTHER]
            total = self._totals[tenant] = TenantTotal()
        return total
