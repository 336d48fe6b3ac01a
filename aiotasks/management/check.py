"""``manage.py aiotasks check``: look for mistakes in the set-up."""

import asyncio
from argparse import ArgumentParser, Namespace

from aiotasks.management.output import Output, add_json
from aiotasks.operations.check import diagnose, finding_parts
from aiotasks.worker.process.cli import add_backend, add_grace

__all__ = ["HELP", "add_arguments", "run"]

HELP = "check the set-up; exits with 1 if there is an error"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``check``."""
    add_backend(parser)
    add_json(parser)
    add_grace(parser, help="the --grace of the workers (25)")


def run(options: Namespace, output: Output) -> int:
    """Print what has been found; returns 1 where there is an error, 0 otherwise."""
    findings = asyncio.run(diagnose(options.backend, grace=options.grace))
    failed = any(finding.verdict == "error" for finding in findings)
    if options.json:
        output.json({"backend": options.backend, "ok": not failed, "checks": findings})
    else:
        output.show(*finding_parts(findings))
    return int(failed)
