"""The command line: `app.py` has the application, and one module each family of commands.

Exit statuses: 0 all went well, 1 it found something wrong, 2 the call was wrong.
"""

from .app import main

__all__ = ["main"]
