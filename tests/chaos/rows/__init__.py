"""The rows of the table of faults: one module for each kind, and all their cases in the order of the table."""

from __future__ import annotations

from ..plan import Case
from . import clocks, crashes, freezes, hostile, network, notices, requests, space, topology, workers

_MODULES = (clocks, crashes, freezes, hostile, network, notices, requests, space, topology, workers)

CASES: tuple[Case, ...] = tuple(
    sorted((case for module in _MODULES for case in module.CASES), key=lambda case: case.row)
)
