"""`python -m holdfast.http.cli`, for where the `holdfast` script is not on the path."""

import sys

from . import main

sys.exit(main())
