"""Is the explanation true? Metrics of faithfulness and localisation, with controls beside them."""
