"""Turn a torch CNN into one graph that returns scores and class activation maps.

Import from its modules: ``from combicam.export.trace.trace import trace``. The name
``combicam.export`` itself is the function that writes a file.
"""
