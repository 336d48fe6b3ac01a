"""Tasks that know a secret, and functions for REDACT, of every kind."""

import re

from aiotasks import task

SECRET = re.compile(r"sk-[0-9]+")

not_a_function = 5


def hide(text: str) -> str:
    return SECRET.sub("[hidden]", text)


def fail(text: str) -> str:
    raise ValueError(text)


def leave(text: str) -> str:
    raise SystemExit(text)


def return_nothing(text: str) -> None:
    return None


@task
async def charge(card: str) -> None:
    try:
        raise KeyError(card)
    except KeyError as error:
        error.add_note(f"the card was {card}")
        raise ValueError(f"{card} was declined") from error


@task
def charge_sync(card: str) -> None:
    raise ValueError(f"{card} was declined")


@task
async def keep(card: str) -> None:
    number = card.removeprefix("sk-")  # neither of these is in the traceback's text
    raise ValueError(f"a card of {len(number)} digits was declined")


alias = charge
