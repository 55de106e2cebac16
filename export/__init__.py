"""Stage 1: a torch CNN becomes one graph that returns scores and class activation maps.

Import what you need from its modules: ``from combicam.export.trace.trace import trace``. The name
``combicam.export`` itself is the function that writes a file.
"""
