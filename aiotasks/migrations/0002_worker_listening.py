from django.db import migrations, models

# The column is nullable and without a default, so that no row is rewritten, and workers of the version
# before go on entering themselves without it. The lock that it takes is a matter of a millisecond, once it
# has it; until then every renewal of a lease would queue up behind it. So it doesn't wait for it longer than
# a lease can spare: `migrate` fails then, with nothing changed, and is to be run again.
IMPATIENCE = "SET LOCAL lock_timeout = '2s'"


class Migration(migrations.Migration):
    dependencies = [("aiotasks", "0001_initial")]

    operations = [
        migrations.RunSQL(IMPATIENCE, migrations.RunSQL.noop),
        migrations.AddField(
            model_name="worker",
            name="listening",
            field=models.BooleanField(null=True),
        ),
        migrations.RunSQL(migrations.RunSQL.noop, IMPATIENCE),  # on the way back this comes first
    ]
