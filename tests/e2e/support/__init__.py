"""Fixtures: the gateway, its backends and its clients."""
