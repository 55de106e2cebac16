"""Stage 1: a torch CNN becomes one graph that returns scores and class activation maps."""
