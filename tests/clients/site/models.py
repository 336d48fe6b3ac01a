"""The site's own data."""

from django.db import models


class Item(models.Model):
    name = models.TextField()
    done = models.BooleanField(default=False)

    class Meta:
        app_label = "site"
