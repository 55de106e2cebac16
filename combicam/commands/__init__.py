"""The subcommands of ``combicam``, one a file.

Each module defines a frozen dataclass ``Config``, from which the options are derived, and a
function ``main(config)``. ``combicam/cli.py`` lists them, and imports only the requested one.
"""
