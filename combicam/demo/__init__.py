"""The embedded demo: procedural postcards of a small planet, and a small CNN that locates them.

`planet` draws postcards, `network` classifies them, `train` made the weights. Nothing heavy is
imported here.
"""
