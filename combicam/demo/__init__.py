"""The embedded demo: a small planet of procedural postcards, and a small CNN that knows its cells.

`planet` draws, `network` recognises, `train` made the weights. Nothing heavy is imported here.
"""
