from django.db import migrations, models

from ._online import AddColumn


class Migration(migrations.Migration):
    """A nullable column without a default: workers of the release before register without it, and are woken
    with all others.
    """

    atomic = False

    dependencies = [("aiotasks", "0006_whole_states")]

    operations = [AddColumn("worker", "channel", models.TextField(null=True))]
