"""The subcommands of ``combicam``, one a file.

Each module has a frozen dataclass ``Config``, of which the options are made, and a function
``main(config)``. ``combicam/cli.py`` lists them, and imports only the one that is asked for.
"""
