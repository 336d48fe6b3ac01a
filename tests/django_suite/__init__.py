"""Django's own tests of its Tasks, run against aiotasks: ``python -m tests.django_suite DIRECTORY``.

The directory is ``tests/`` of Django's source. Its tests are written for Django's two backends; in their
places stand PostgresBackend (for the one that only stores) and PostgresBackend with a drain after each
enqueue (for the one that runs tasks at once).
"""
