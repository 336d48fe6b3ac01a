"""``manage.py aiotasks check``: look for mistakes in the set-up."""

import asyncio
from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from aiotasks.management.subcommand import Write, add_json, as_json
from aiotasks.operations.check import diagnose, findings_as_text
from aiotasks.worker.process.cli import add_backend, add_grace

__all__ = ["HELP", "add_arguments", "run"]

HELP = "check the set-up; exits with 1 if there is an error"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``check``."""
    add_backend(parser)
    add_json(parser)
    add_grace(parser, help="the --grace of the workers (25)")


def run(options: Namespace, write: Write) -> int:
    """Print what has been found; returns 1 where there is an error, 0 otherwise."""
    findings = asyncio.run(diagnose(options.backend, grace=options.grace))
    failed = any(finding.verdict == "error" for finding in findings)
    if options.json:
        found = [asdict(finding) for finding in findings]
        write(as_json({"backend": options.backend, "ok": not failed, "checks": found}))
    else:
        write(findings_as_text(findings))
    return int(failed)
