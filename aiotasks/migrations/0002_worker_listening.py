from django.db import migrations, models

from ._online import AddColumn


class Migration(migrations.Migration):
    """Nullable and without a default: workers of before go on entering themselves without it."""

    atomic = False

    dependencies = [("aiotasks", "0001_initial")]

    operations = [AddColumn("worker", "listening", models.BooleanField(null=True))]
