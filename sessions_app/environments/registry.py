"""The providers of execution environments this installation has, by kind."""

from __future__ import annotations

from .base import Provider

_providers: dict[str, Provider] = {}


def register(provider: Provider) -> None:
    """Make a provider known. Registering a kind twice is a mistake and raises ValueError."""
    if provider.kind in _providers:
        raise ValueError(f"A provider of kind {provider.kind!r} is registered already.")
    _providers[provider.kind] = provider


def get(kind: str) -> Provider:
    """Return the provider of a kind. Raises KeyError when there is none."""
    return _providers[kind]
