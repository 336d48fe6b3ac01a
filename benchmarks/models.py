"""What tasks look up."""

from django.db import models

__all__ = ["Item"]


class Item(models.Model):
    """A small row, found by its primary key; there are ITEMS of them, from 1."""

    name = models.TextField()

    def __str__(self) -> str:
        return self.name


ITEMS = 100
