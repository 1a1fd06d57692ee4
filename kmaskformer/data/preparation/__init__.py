"""Bringing the published datasets' downloads into a form that a reader takes, and checking it."""
