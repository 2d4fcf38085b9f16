"""The load-testing harness: buyers who drive a server over HTTP, and a verdict from what they were told.

Needs the extra `load`; `holdfast load` says so where it is missing.
"""
