"""`make bench`: Holdfast beside its peers, in one run, on the same cores.

| module | what lives there |
| --- | --- |
| `__main__.py` | the command: arguments, and the order of things |
| `plan.py` | what is measured: runs, and the phases that interleave them |
| `rows.py` | the table of figures: which runs a row needs, its target, whether it was reached |
| `stacks.py` | everything that is measured, started and stopped: Holdfast and its peers |
| `peers/` | the peers' own code |
| `load.py` | load from outside: wrk, redis-benchmark, the open loop |
| `special.py` `scale.py` | what rows measure by themselves: large sales, memory, holds that run out; clusters |
| `openloop.py` `callers.py` `fill.py` | processes of their own: open-loop load, many callers, tickets in bulk |
| `sales.py` | one more: callers of many sales, or of one in shards, on clusters |
| `several.py` | and several that sell one sale at the same time |
| `measure.py` | CPU from /proc, medians and spread, waiting until all is quiet |
| `machine.py` | cores, versions, and what a clean machine still needs |
| `report.py` | the table, the JSON, the Markdown |

Run as `PYTHONPATH=tests python -P -m bench`: the repository's root must not come first on the path, where our http/
lies beside the standard library's.
"""
