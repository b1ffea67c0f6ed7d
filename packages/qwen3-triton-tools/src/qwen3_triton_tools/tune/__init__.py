"""Measure engines and settings on this machine, each in a gateway of its own."""
