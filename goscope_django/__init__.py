"""Coordinate Django processes on the MongoDB they already trust."""

from __future__ import annotations

__version__ = "0.2.0"
