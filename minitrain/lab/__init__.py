"""Measuring runs: probes and pictures."""
