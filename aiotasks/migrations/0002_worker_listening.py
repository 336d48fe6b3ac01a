from django.db import migrations, models

from ._online import AddColumn


class Migration(migrations.Migration):
    """A nullable column without a default: workers of the release before register without it."""

    atomic = False

    dependencies = [("aiotasks", "0001_initial")]

    operations = [AddColumn("worker", "listening", models.BooleanField(null=True))]
