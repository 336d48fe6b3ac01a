"""One measurement, in a process of its own, on the database that ``AIOTASKS_BENCH_DSN`` names.

``python -m benchmarks.contenders NAME prepare [WORKLOAD COUNT]`` makes the schema (or the rows that the
workload finds there); ``python -m benchmarks.contenders NAME WORKLOAD COUNT`` measures: the last line of
its output is a JSON object of figures. The exit code is 1 where there is nothing to show, and the last
line of stderr says why.
"""

import json
import sys
from collections.abc import Sequence

from . import load
from .common import MeasurementFailed

__all__: list[str] = []


def main(arguments: Sequence[str]) -> int:
    match arguments:
        case [name, "prepare"]:
            load(name).prepare()
        case [name, "prepare", workload, count]:
            load(name).STAGES[workload](int(count))
        case [name, workload, count]:
            try:
                figures = load(name).WORKLOADS[workload](int(count))
            except MeasurementFailed as error:
                print(error, file=sys.stderr)
                return 1
            print(json.dumps(figures))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
