"""Metrics of faithfulness and localisation, compared with baseline maps."""
