"""Measurements of the whole service from outside; see docs/performance.md."""
