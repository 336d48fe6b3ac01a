"""A module that declares schedules: OPTIONS['SCHEDULES'] of a test's worker names it."""

import aiotasks

from . import tasks

aiotasks.periodic("* * * * * *", timezone="UTC", name="seconds", args=[1, 2], overlap="allow")(tasks.add)
aiotasks.periodic("0 3 * * *", timezone="Europe/Berlin", args=[3, 4])(tasks.add)
