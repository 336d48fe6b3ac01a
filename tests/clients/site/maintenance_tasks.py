"""django-maintenance-tasks."""

from maintenance_tasks import MaintenanceTask

from .models import Item


class Backfill(MaintenanceTask):
    batch_size = 3

    def collection(self):
        return Item.objects.filter(done=False)

    def process(self, item):
        item.done = True
        item.save(update_fields=["done"])
