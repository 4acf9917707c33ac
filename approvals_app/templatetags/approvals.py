"""Template words of the approvals: a card from a timeline item."""

from __future__ import annotations

from django import template

from sessions_app.timeline import Item

from .. import cards

register = template.Library()


@register.filter
def as_card(item: Item) -> cards.Card:
    return cards.of_item(item)
